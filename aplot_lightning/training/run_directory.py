"""A run's directory: whether it can be written, and the lock that keeps a second run out."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from filelock import BaseFileLock

from aplot_lightning.errors import UserError
from aplot_lightning.files import try_lock, write_text

LOCK, HOLDER = ".lock", ".lock-holder"
_held: list[BaseFileLock] = []


def lock_run(run_dir: Path) -> None:
    """Makes the run directory and locks it for this process until `unlock_runs` or the end of the process.

    The lock file may stay behind; only a living process holds the lock. Forked workers of a loader do not keep it:
    filelock closes their copies (from 3.30 on).

    Raises:
        UserError: the directory cannot be written, or another process has locked it.
    """
    holder = run_dir / HOLDER
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = try_lock(run_dir / LOCK)
        if lock is not None:
            write_text(holder, f"process {os.getpid()} on {platform.node()}")
    except OSError as error:
        raise not_writable(run_dir, error.strerror) from error
    if lock is None:
        name = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise UserError(
            f"run_dir: {run_dir} is in use by another run ({name}); wait for its end or name another --run_dir"
        )
    _held.append(lock)


def unlock_runs() -> None:
    """Releases every lock of `lock_run`."""
    while _held:
        _held.pop().release()


def check_writable(run_dir: Path) -> None:
    """Raises UserError if the run directory plainly cannot be made or written. Makes nothing."""
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"run_dir: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise not_writable(run_dir, f"{existing} is read-only")


def not_writable(run_dir: Path, reason: str | None) -> UserError:
    """The error for a run directory that cannot be written."""
    return UserError(f"run_dir: {run_dir} cannot be written ({reason}); name another --run_dir")
