"""Checkpoint files that are whole or not there: a kill or a full disk in mid-write leaves the former one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from aplot_lightning.errors import RunError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, waits until the disk has it, and renames it onto the former one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises RunError where the disk does not take it; the former file is then as it was."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            replace_durably(part, path)
        except (OSError, RuntimeError) as error:
            reason = _system_error(error)
            if reason is None:
                raise
            former = "the checkpoint before it is whole" if path.exists() else "there is no earlier one"
            raise RunError(
                f"step {checkpoint.get('global_step')}: {path} could not be written ({reason.strerror}); {former}: "
                "mend that and go on by --ckpt_path last"
            ) from error
        finally:
            part.unlink(missing_ok=True)


def replace_durably(new: Path, path: Path) -> None:
    """Renames `new` onto `path`, and waits until the disk has the name too."""
    os.replace(new, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _system_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error: PyTorch's writer has its own on top of it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
