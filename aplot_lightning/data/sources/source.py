"""What a source is: rows with their places, whatever they mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

GIVE_A_FILE = "give a JSONL (also .gz) or Parquet file"

Row = tuple[str, Any]


class Source(ABC):
    """Rows of preference data in the layouts of `parse_comparison`.

    Attributes:
        name: short name, the beginning of each row's place and the default of its ``source``.
    """

    name: str

    def __str__(self) -> str:
        """What the user knows the source by: a file's whole path where it is a file."""
        return self.name

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yields (where, row) in order; in place of a row that is none a RowError.

        Raises:
            UserError: the source cannot be read, or not to its end.
        """


def one_line(error: BaseException) -> str:
    """The message of an error that was not ours, short and without line ends."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
