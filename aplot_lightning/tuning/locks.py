"""One process at a time, of all that share a study; a process that dies holds nothing."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

JOURNAL, SQLITE, POSTGRES = "journal:", "sqlite:///", "postgresql"


def file_of(location: str) -> Path | None:
    """The file of an SQLite or journal storage; None for a database server."""
    start = next((start for start in (JOURNAL, SQLITE) if location.startswith(start)), None)
    return Path(location.removeprefix(start)) if start else None


def database_url(location: str) -> str:
    """A PostgreSQL URL with the driver that is installed, where it names none: SQLAlchemy's own choice may not be."""
    start = f"{POSTGRES}://"
    if location.startswith(start) and find_spec("psycopg") is None and find_spec("psycopg2") is not None:
        return f"{POSTGRES}+psycopg2://{location.removeprefix(start)}"
    return location


@contextmanager
def locked(location: str, purpose: str, *, wait: bool = True) -> Iterator[bool]:
    """One process at a time, of all that share the storage; a dead one holds nothing.

    Args:
        location: of the storage: beside its file, or in the database, which may be on another machine.
        purpose: locks of other purposes are others.
        wait: for the process that has it.

    Yields:
        Whether this process has it, always true where it waits.
    """
    path = file_of(location)
    if path is None:
        with _database_lock(location, purpose, wait) as held:
            yield held
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _opened(path.with_name(f".{path.name}.{purpose}.lock"))
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


@contextmanager
def _database_lock(location: str, purpose: str, wait: bool) -> Iterator[bool]:
    """An advisory lock of PostgreSQL, which ends with its connection."""
    import sqlalchemy

    number = int.from_bytes(hashlib.sha256(f"aplot {purpose}".encode()).digest()[:8], "big", signed=True)
    function = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    engine = sqlalchemy.create_engine(
        database_url(location), poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        held = connection.execute(sqlalchemy.text(f"select {function}(:number)"), {"number": number}).scalar()
        yield wait or bool(held)


class JournalLock:
    """A journal's lock that dies with its process, where Optuna's own is waited for half a minute.

    It also takes back the line that a process was killed in writing, which would spoil the next one.

    Args:
        path: the journal file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def acquire(self) -> bool:
        self._descriptor = _opened(self.path.with_name(f".{self.path.name}.lock"))
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        _mend(self.path)
        return True

    def release(self) -> None:
        os.close(self._descriptor)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _mend(path: Path) -> None:
    """Cuts a file's last line off where it has no end."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        start = max(0, size - (1 << 20))  # no line is as long
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)
