"""One run at a time in a run directory, whatever becomes of the process that holds it."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path

from aplot_lightning.errors import UserError

NAME = ".lock"
_held: list[int] = []  # file descriptors


def lock_run(run_dir: Path) -> None:
    """Makes the run directory, and takes it for this process until `unlock_runs` or its end, however it ends.

    The file itself may stay behind: only a living process holds the lock.

    Raises:
        UserError: the directory cannot be written, or another process has it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise not_writable(run_dir, error.strerror) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise UserError(
            f"run_dir: {run_dir} is in use by another run ({holder}); wait for its end or name another --run_dir"
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
    _held.append(descriptor)


def unlock_runs() -> None:
    while _held:
        os.close(_held.pop())


# a loader's worker that outlives its killed run by a moment must not keep the lock
os.register_at_fork(after_in_child=unlock_runs)


def check_writable(run_dir: Path) -> None:
    """Raises UserError where the run directory plainly cannot be made or written; nothing is made."""
    there = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"run_dir: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise not_writable(run_dir, f"{there} is read-only")


def not_writable(run_dir: Path, reason: str | None) -> UserError:
    return UserError(f"run_dir: {run_dir} cannot be written ({reason}); name another --run_dir")
