"""What a command says beside its result: warnings, and on a terminal a bar with rate and time left, none in a log."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from aplot_lightning.data.sources import Folder, JsonLines, Parquet, Source
from aplot_lightning.errors import UserError

GZIP = b"\x1f\x8b"


def warn(message: object) -> None:
    """One line on stderr."""
    sys.stderr.write(f"warning: {message}\n")


@contextmanager
def progress(total: Callable[[], int | None], done: int = 0) -> Iterator[Callable[[int], None]]:
    """A function that counts rows.

    Args:
        total: gives the number of all rows, None where it is not known; asked only where there is a bar.
        done: rows of a former run.
    """
    if not sys.stderr.isatty():
        yield lambda rows: None
        return
    from tqdm import tqdm

    with tqdm(total=total(), initial=done, unit=" rows", leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance


def rows_of(source: Source) -> int | None:
    """About how many rows a source has (empty lines are counted too); None where only reading it all would tell."""
    try:
        if isinstance(source, Folder):
            counts = [rows_of(open_shard(str(path))) for path in source.shards()]
            return None if None in counts else sum(count or 0 for count in counts)
        if isinstance(source, Parquet):
            import pyarrow.parquet as pq

            return int(pq.read_metadata(source.path).num_rows)
        if isinstance(source, JsonLines):
            with source.path.open("rb") as file:
                packed = file.read(2) == GZIP
            with gzip.open(source.path) if packed else source.path.open("rb") as lines:
                return _line_ends(lines)
    except (OSError, EOFError, ValueError, UserError):  # what is wrong with the file is told by whoever reads its rows
        return None
    return None


def open_shard(path: str) -> Source:
    from aplot_lightning.data.sources import open_source

    return open_source(path, "--input")


def _line_ends(file: IO[bytes] | gzip.GzipFile) -> int:
    return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
