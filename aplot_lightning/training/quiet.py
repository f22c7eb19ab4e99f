"""What a run does not repeat of what Lightning says: advertisement, and warnings of what is checked or wanted here."""

from __future__ import annotations

import logging
import warnings

NEEDLESS = {  # the beginning of a warning, and why it says nothing here
    "LightningCLI's args parameter": "cli.main takes words from Python too",
    ".*LeafSpec.* is deprecated": "Lightning's own use of torch",
    ".*does not have many workers": "batches are ready-made",
    "Checkpoint directory .* exists and is not empty": "checked before",
    ".*your dataloader is not resumable": "it is: see StepSampler",
    "Found .* module.* in eval mode": "a frozen backbone stays so",
    "Be aware that when using `ckpt_path`": "evaluating saves nothing",
    "You're using the WeightAveraging callback": "sharding is refused",
    "It is recommended to use .*sync_dist": "figures are of all ranks",
    "FSDP2-wrapped module .* returned a view": "nobody writes into it",
    "Detected call of `lr_scheduler.step": "a gradient scaler skips steps",
}
LOGS = ("utilities.rank_zero", "trainer.connectors.checkpoint_connector")


def quieten() -> None:
    """Leaves these out, in this process."""
    for message in NEEDLESS:
        warnings.filterwarnings("ignore", message=message)
    for name in LOGS:
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_telling)


def _is_telling(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.msg and "`weights_only` was not set" not in record.msg
