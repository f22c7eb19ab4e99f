"""The two checkpoints of a run: `last.ckpt` to go on from, and `best.ckpt`, which its figures come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from aplot_lightning.errors import UserError

FOLDER = "checkpoints"
LOWER_IS_BETTER = ("log_loss", "ece", "loss")


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every so many optimizer steps, after every validation, and at the end of the run.

    Args:
        run_dir: the run directory.
        every_n_steps: optimizer steps between two writes; None for validations and the end only.
    """

    def __init__(self, run_dir: Path, every_n_steps: int | None = None) -> None:
        self.path = run_dir / FOLDER / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved_at = -1

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._saved_at != trainer.global_step:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """A run that was asked to stop keeps its last finished step."""
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        stopped = isinstance(exception, (SIGTERMException, KeyboardInterrupt))
        if stopped and trainer.training and self._saved_at != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_at = trainer.global_step


def best_checkpoint(run_dir: Path, monitor: str) -> ModelCheckpoint:
    """Keeps `best.ckpt` by a metric that may select. Raises UserError for a test set (method.md section 5)."""
    stem, _, metric = monitor.rpartition("/")
    if not (stem == "validation" or stem.startswith("ood_validation/")):
        raise UserError(
            f"monitor: {monitor!r} may not select a checkpoint; use a metric of `validation` or of a set in "
            "data.ood_validation, such as validation/accuracy"
        )
    mode = "min" if metric in LOWER_IS_BETTER else "max"
    return ModelCheckpoint(
        dirpath=run_dir / FOLDER,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )


def find_checkpoint(name: str, run_dir: Path) -> Path:
    """The file that `--ckpt_path last`, `best` or a path names. Raises UserError where it is not there."""
    path = run_dir / FOLDER / f"{name}.ckpt" if name in {"last", "best"} else Path(name)
    if not path.exists():
        hint = "; name the run with --run_dir" if name in {"last", "best"} else ""
        raise UserError(f"--ckpt_path {name}: there is no checkpoint at {path}{hint}")
    return path
