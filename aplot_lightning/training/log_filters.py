"""Hides Lightning's advertisements, and its warnings about things that are checked or intended here."""

from __future__ import annotations

import logging
import warnings

NEEDLESS = {  # the beginning of a warning, and why it does not apply here
    "LightningCLI's args parameter": "cli.main takes arguments from Python too",
    ".*LeafSpec.* is deprecated": "Lightning's own use of torch",
    ".*does not have many workers": "batches are ready-made",
    "Checkpoint directory .* exists and is not empty": "checked before",
    ".*your dataloader is not resumable": "it is: see StepSampler",
    "Found .* module.* in eval mode": "a frozen backbone stays so",
    "Be aware that when using `ckpt_path`": "evaluating saves nothing",
    "You're using the WeightAveraging callback": "sharding is refused",
    "It is recommended to use .*sync_dist": "figures are of all ranks",
    "FSDP2-wrapped module .* returned a view": "no code writes into it",
    "Detected call of `lr_scheduler.step": "a gradient scaler skips steps",
}
LOGS = ("utilities.rank_zero", "trainer.connectors.checkpoint_connector")


def filter_logs() -> None:
    """Hides them in this process."""
    for message in NEEDLESS:
        warnings.filterwarnings("ignore", message=message)
    for name in LOGS:
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.msg and "`weights_only` was not set" not in record.msg
