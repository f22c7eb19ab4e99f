"""What a source is: rows with their places, whatever they mean, and a fingerprint of them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from aplot_lightning.data.sources.stream import Place, Stream

GIVE_A_FILE = "give a JSONL (also .gz) or Parquet file"

Row = tuple[str, Any]


class Source(ABC):
    """Rows of preference data in the layouts of `parse_comparison`.

    Attributes:
        name: short name, the beginning of each row's place and the default of its ``source``.
        weight: how often an epoch draws each of its comparisons, on average (training sources only).
        streaming: read while it is trained on, in place of once before.
        path: the file or folder, where it is one.
    """

    name: str
    path: Path | None = None
    weight: float = 1.0
    streaming: bool = False

    def __str__(self) -> str:
        """What the user knows the source by: a file's whole path where it is a file."""
        return self.name

    def rename(self, name: str) -> None:
        """Gives the source, and the places of its rows, another name."""
        self.name = name

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yields (where, row) in order; in place of a row that is none a RowError.

        Raises:
            UserError: the source cannot be read, or not to its end.
        """

    def stream(self, place: Place | None = None) -> Stream:
        """The rows from a place on (`Stream.place`), or from the beginning.

        This one reads again what comes before the place; sources that can go there at once override it.
        """
        read = 0 if place is None else int(place["read"])
        return Stream(islice(self.rows(), read, None), read)

    def fingerprint(self) -> str:
        """Hex digest of the name, the rows and their places: sources with equal ones give equal comparisons.

        This one reads all rows; sources that know a shorter way override it. Raises UserError as `rows` does.
        """
        return fingerprint_of(type(self).__qualname__, self.name, *(_text(where, row) for where, row in self.rows()))


def fingerprint_of(*parts: str) -> str:
    """Hex SHA-256 of a sequence of texts; where one part ends counts."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


def _text(where: str, row: Any) -> str:
    """A row with its place as text: equal for equal rows, whatever objects hold them."""
    try:
        return json.dumps([where, row], default=_plain)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, or rows that hold themselves
        return f"{where} {row!r}"


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)  # NumPy's repr leaves out long arrays' middles


def one_line(error: BaseException) -> str:
    """The message of an error that was not ours, short and without line ends."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
