"""The rows of a source one after another, from a place on that can be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

Place = dict[str, Any]  # primitives: it goes into checkpoints


class Stream:
    """Rows in order, and the place that has been reached.

    Args:
        rows: (where, row), from the place `read` on.
        read: rows before them.
        inner: the place inside what the rows come from, where it can go there at once (the state of a `datasets`
            stream); by default None, and whoever goes on counts rows.
    """

    def __init__(self, rows: Iterator[tuple[str, Any]], read: int = 0, inner: Callable[[], Any] | None = None) -> None:
        self.rows = rows
        self.read = read
        self.inner = inner or (lambda: None)

    def take(self, most: int) -> list[tuple[str, Any]]:
        """The next rows, fewer than `most` only at the end. Raises UserError as `Source.rows` does."""
        taken = list(islice(self.rows, most))
        self.read += len(taken)
        return taken

    def place(self) -> Place:
        """The place after the rows taken so far, for `Source.stream`."""
        return {"read": self.read, "inner": self.inner()}
