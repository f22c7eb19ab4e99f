"""A run's checkpoints: `last.ckpt` to resume from, earlier ones, and `best.ckpt`, which the figures come from.

Each file is written whole or not at all: a kill or a full disk in the middle of a write leaves the previous one.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.evaluation.monitor import check_monitor, direction
from aplot_lightning.files import replacing
from aplot_lightning.model.checkpoint import read_checkpoint
from aplot_lightning.training.lightning_internals import validation_is_due

FOLDER = "checkpoints"
EARLIER = "step-"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, waits until the disk holds it, and renames it to the file's name."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises RunError if the disk does not take it; the previous file is then unchanged."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, "wb", durable=True) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = _system_error(error)
            if reason is None:
                raise
            previous = "the previous checkpoint is whole" if path.exists() else "there is no earlier one"
            raise RunError(
                f"step {checkpoint.get('global_step')}: {path} could not be written ({reason.strerror}); {previous}: "
                "fix that and resume with --ckpt_path last"
            ) from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The OSError that caused `error`, if any: PyTorch's writer raises its own error on top of it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every so many optimizer steps, after every validation, and at the end of the run.

    Args:
        run_dir: the run directory.
        every_n_steps: optimizer steps between two writes; None to write only after validations and at the end.
        keep: how many earlier ones stay, as `step-*.ckpt`.
    """

    def __init__(self, run_dir: Path, every_n_steps: int | None = None, keep: int = 1) -> None:
        self.path = run_dir / FOLDER / "last.ckpt"
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._saved_at = -1

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        # a run resumed from here would skip a validation that is due; on_validation_end saves too
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not validation_is_due(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # a run that stops saves at its end, when Lightning counts the epoch as finished: a run resumed from here would
        # train on
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.should_stop:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._saved_at != trainer.global_step:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Saves the last step of a run that was asked to stop; after any other error a step may be half done."""
        stopped = isinstance(exception, SIGTERMException)
        if stopped and trainer.training and self._saved_at != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self.keep and self._saved_at != trainer.global_step:
            self._keep_previous()
        trainer.save_checkpoint(self.path)
        self._saved_at = trainer.global_step
        if trainer.is_global_zero:
            self._prune(trainer.global_step)

    def _prune(self, step: int) -> None:
        """Removes all but the newest before `step`. Those after it are left from a run that was resumed earlier."""
        earlier = sorted(self.path.parent.glob(f"{EARLIER}*.ckpt"))
        before = [path for path in earlier if path.name < f"{EARLIER}{step:08}.ckpt"]
        for path in set(earlier) - set(before[max(0, len(before) - self.keep) :]):
            path.unlink()

    def _keep_previous(self) -> None:
        """Gives `last.ckpt` a second name before the next one replaces it."""
        step = self._saved_at if self._saved_at >= 0 else _step_of(self.path)
        if step is None:
            return
        name = self.path.with_name(f"{EARLIER}{step:08}.ckpt")
        name.unlink(missing_ok=True)
        try:
            os.link(self.path, name)
        except OSError:  # a file system without links
            shutil.copyfile(self.path, name)


def _step_of(path: Path) -> int | None:
    """The step of a checkpoint, or None if it is missing or damaged."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # a file can be damaged in many ways
        return None


class BestCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that remembers its best even if the run directory was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {name: here(state_dict[name]) for name in state_dict if name.endswith("_model_path")}
        kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": self.dirpath})


def best_checkpoint(run_dir: Path, monitor: str) -> BestCheckpoint:
    """Keeps `best.ckpt` by a metric that may select. Raises UserError for a test set (docs/method.md section 5)."""
    check_monitor(monitor)
    return BestCheckpoint(
        dirpath=run_dir / FOLDER,
        filename="best",
        monitor=monitor,
        mode="min" if direction(monitor) == "minimize" else "max",
        save_top_k=1,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )


def can_select(monitor: str, sets: Collection[str]) -> bool:
    """Whether the evaluation sets measure `monitor`; warns if small data left no `validation` set.

    Raises UserError for an unknown set.
    """
    stem = monitor.rpartition("/")[0]
    if stem in sets:
        return True
    if stem != "validation":
        raise UserError(f"monitor: unknown set {stem}; name it in data.ood_validation or choose another --monitor")
    rank_zero_warn(
        "no training prompt was held out as validation set (data.validation_share): nothing selects a checkpoint, and "
        "best.ckpt is the last"
    )
    return False


def find_checkpoint(name: str, run_dir: Path, *, whole: bool = True) -> Path:
    """The file that `--ckpt_path last`, `best` or a path names.

    Args:
        name: the value of --ckpt_path.
        run_dir: the run directory.
        whole: require that the file holds the backbone too.

    Raises:
        UserError: the file is missing or damaged, or holds objects that could run code. The message names the newest
            undamaged checkpoint of the run.
    """
    path = run_dir / FOLDER / f"{name}.ckpt" if name in {"last", "best"} else Path(name)
    if not path.exists():
        hint = "; name the run with --run_dir" if name in {"last", "best"} else ""
        raise UserError(f"--ckpt_path {name}: there is no checkpoint at {path}{hint}{_offer(path, whole)}")
    try:
        check_whole(path, whole)
    except UserError as error:
        raise UserError(f"{error}{_offer(path, whole)}") from error
    return path


def check_whole(path: Path, whole: bool = True) -> None:
    """Raises UserError unless a checkpoint's checksums are right and it holds nothing but values."""
    read_checkpoint(str(path), "--ckpt_path", whole=whole)
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise UserError(f"--ckpt_path: {path} is damaged: what it holds is not what was written")


def _offer(path: Path, whole: bool) -> str:
    """Names the newest undamaged checkpoint beside one that cannot be used."""
    others = {other: _step_of(other) for other in path.parent.glob("*.ckpt") if other != path}
    for step, other in sorted(((step, other) for other, step in others.items() if step is not None), reverse=True):
        try:
            check_whole(other, whole)
        except UserError:
            continue
        return f"; the one of step {step} is whole: --ckpt_path {other}"
    return ""
