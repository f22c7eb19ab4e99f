"""Files that are written whole or not at all, and locks between processes.

The only module that renames a finished file into place or takes a lock on one. It imports nothing else of the package.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout


@contextmanager
def replacing(path: Path, mode: str = "w", *, durable: bool = False) -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` that replaces it when the block ends.

    If the block raises, the temporary file is removed and `path` stays as it was. Text is UTF-8. A path that ends in
    ``.gz`` is compressed.

    Args:
        path: the file to write; its folder must exist.
        mode: ``"w"`` for text or ``"wb"`` for bytes.
        durable: wait until the disk holds the file and its name, so that it also survives a power failure.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _opened(temporary, mode, compressed=path.suffix == ".gz") as file:
            yield file
        if durable:
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
        replace(temporary, path, durable=durable)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Writes `text` to `path` as `replacing` does."""
    with replacing(path, durable=durable) as file:
        file.write(text)


def replace(new: Path, path: Path, *, durable: bool = False) -> None:
    """Renames `new` to `path`, replacing a file there. See `replacing` for `durable`."""
    os.replace(new, path)
    if durable and os.name == "posix":  # other systems cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def try_lock(path: Path) -> FileLock | None:
    """Locks `path` for this process until `release()` or the end of the process.

    The lock file may stay behind; only a living process holds the lock.

    Returns:
        The lock, or None if another process holds it.

    Raises:
        OSError: the lock file cannot be created.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for the lock on `path` and holds it during the block. Creates missing folders.

    Raises:
        OSError: the lock file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


def _opened(path: Path, mode: str, compressed: bool) -> Any:
    encoding = None if "b" in mode else "utf-8"
    if compressed:
        return gzip.open(path, mode if "b" in mode else f"{mode}t", encoding=encoding)
    return path.open(mode, encoding=encoding)
