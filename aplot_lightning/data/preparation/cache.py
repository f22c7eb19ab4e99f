"""Entries on disk that are whole or not there at all, for any number of processes at once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock

from aplot_lightning.errors import UserError

MANIFEST = "manifest.json"
READ = 1 << 20  # bytes read at once for a checksum
FULL = (errno.ENOSPC, errno.EDQUOT)


class Cache:
    """Folders that were built once, by level and key.

    An entry is built in a folder beside its own under a lock, gets a manifest with every file's size and checksum, and
    is then moved into place. One that does not agree with its manifest is built again. Nothing is ever thrown away: the
    user may remove the folder, or any entry in it, while no run uses it.

    Args:
        folder: where the entries are; by default ``$APLOT_CACHE``, else ``~/.cache/aplot_lightning``. Where it cannot
            be written, new entries go to a temporary folder that this process removes at its end.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        chosen = folder or os.environ.get("APLOT_CACHE") or "~/.cache/aplot_lightning"
        self.folder = Path(os.path.expanduser(chosen)).absolute()

    def entry(self, level: str, key: str, build: Callable[[Path], None]) -> Path:
        """The folder of an entry, built where there is no sound one.

        Args:
            level: the kind of entry.
            key: a digest of all that decides its content.
            build: fills an empty folder with files (no folders).

        Raises:
            UserError: the disk is full, or what `build` raises.
        """
        path = self.folder / level / key
        if _fault(path) is None:
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.parent / f"{key}.lock")
            lock.acquire()
        except OSError as error:
            if error.errno in FULL:
                raise self._full() from error
            if self.folder == _temporary_folder():
                raise
            self._go_elsewhere(error)
            return self.entry(level, key, build)
        try:
            return self._build(path, build)
        except OSError as error:
            if error.errno in FULL:
                raise self._full() from error
            raise
        finally:
            lock.release()

    def find(self, level: str, key: str) -> Path | None:
        """The folder of an entry, where there is a sound one."""
        path = self.folder / level / key
        return path if _fault(path) is None else None

    def _build(self, path: Path, build: Callable[[Path], None]) -> Path:
        """Builds an entry under its lock, unless another process has done so in the meantime."""
        for left in path.parent.glob(f"{path.name}.*.partial"):  # by a builder that was killed
            shutil.rmtree(left, ignore_errors=True)
        partial = path.parent / f"{path.name}.{uuid.uuid4().hex[:8]}.partial"
        fault = _fault(path)
        if fault is None:
            return path
        if path.exists():
            warnings.warn(f"prepared data is damaged and is made again: {path}: {fault}", stacklevel=4)
            path.rename(partial)
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            build(partial)
            files = {file.name: [file.stat().st_size, _checksum(file)] for file in sorted(partial.iterdir())}
            (partial / MANIFEST).write_text(json.dumps({"files": files}))
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return path

    def _go_elsewhere(self, error: OSError) -> None:
        folder = _temporary_folder()
        warnings.warn(
            f"data.cache_dir: {self.folder} cannot be written ({error.strerror or error}): prepared data is kept in "
            "a temporary folder and made again by the next run",
            stacklevel=4,
        )
        self.folder = folder

    def _full(self) -> UserError:
        return UserError(
            f"data.cache_dir: no space is left at {self.folder}: free some, or name a folder on another disk"
        )


@cache
def _temporary_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="aplot-", ignore_cleanup_errors=True)
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory] = []  # removed with its folder when the process ends


def _fault(path: Path) -> str | None:
    """What is wrong with an entry; None where every file is as its manifest says."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        for name, (size, checksum) in files.items():
            if (path / name).stat().st_size != size:
                return f"{name} has another size than it had"
            if _checksum(path / name) != checksum:
                return f"{name} has another checksum than it had"
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read ({error.strerror or error})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be understood"
    return None


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(READ):
            value = zlib.crc32(block, value)
    return value


@cache
def code_digest() -> str:
    """Hex digest of the code that reads and encodes: with other code, everything is prepared anew.

    A number to be raised by hand would be forgotten. The files are small, and a new release is rare.
    """
    data = Path(__file__).parents[1]
    state = hashlib.sha256()
    for path in [*sorted(data.rglob("*.py")), data.parent / "evaluation" / "similarity.py"]:
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()
