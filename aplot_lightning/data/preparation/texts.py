"""Comparisons in an Arrow file, mapped into memory and decoded one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from aplot_lightning.data.comparisons import Comparison, Message

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "comparisons.arrow"
BATCH = 1024  # comparisons in a record batch, and encoded together
CHARACTERS = 1 << 25  # in a record batch, where rows are long
LABELS = ("source", "subset", "id", "where")


def schema() -> pa.Schema:
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
    return pa.schema(
        [
            ("prompt", messages),
            ("responses", pa.list_(messages)),
            ("pairs", pa.list_(pa.int32())),  # winner, loser, winner, loser ...
            ("margin", pa.float64()),
            ("target", pa.float64()),
            ("scores", pa.list_(pa.float64())),
            *((name, pa.large_string()) for name in LABELS),
        ]
    )


class TextWriter:
    """Writes comparisons to the Arrow file of a folder, a record batch at a time."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self._schema = schema()
        self._writer = pa.ipc.new_file(str(folder / FILE), self._schema)
        self._waiting: list[Comparison] = []
        self._characters = 0

    def add(self, comparison: Comparison) -> None:
        self._waiting.append(comparison)
        messages = [*comparison.prompt, *(message for response in comparison.responses for message in response)]
        self._characters += sum(len(message["content"]) for message in messages)
        if len(self._waiting) == BATCH or self._characters >= CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        rows = self._waiting
        columns: dict[str, list[Any]] = {
            name: [getattr(row, name) for row in rows] for name in ("prompt", "responses", "margin", "target", "scores")
        }
        columns["pairs"] = [[place for pair in row.pairs for place in pair] for row in rows]
        columns |= {name: [getattr(row, name) for row in rows] for name in LABELS}
        self._writer.write_batch(
            pa.record_batch([pa.array(columns[f.name], f.type) for f in self._schema], self._schema)
        )
        self._waiting, self._characters = [], 0

    def __enter__(self) -> TextWriter:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None and self._waiting:
            self._flush()
        self._writer.close()


class Kept(Sequence[Comparison], ABC):
    """Comparisons that are read when they are asked for."""

    @abstractmethod
    def at(self, place: int) -> Comparison:
        """The comparison at a place from 0 on."""

    @abstractmethod
    def labels(self, name: str, places: np.ndarray) -> list[str]:
        """One of `LABELS` of the comparisons at `places`, read without the texts."""

    @overload
    def __getitem__(self, place: int) -> Comparison: ...

    @overload
    def __getitem__(self, place: slice) -> list[Comparison]: ...

    def __getitem__(self, place: int | slice) -> Comparison | list[Comparison]:
        if isinstance(place, slice):
            return [self.at(each) for each in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.at(int(place))


class StoredComparisons(Kept):
    """The comparisons that a `TextWriter` left in a folder."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self.folder = folder
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / FILE)))
        counts = [self._reader.get_batch(place).num_rows for place in range(self._reader.num_record_batches)]
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredComparisons, (self.folder,)

    def __len__(self) -> int:
        return int(self.first[-1])

    @property
    def batches(self) -> int:
        return len(self.first) - 1

    def batch(self, place: int) -> list[Comparison]:
        """The comparisons of one record batch."""
        return [_comparison(row) for row in self._reader.get_batch(place).to_pylist()]

    def __iter__(self) -> Iterator[Comparison]:
        for place in range(self.batches):
            yield from self.batch(place)

    def at(self, place: int) -> Comparison:
        batch = int(np.searchsorted(self.first, place, side="right")) - 1
        row = self._reader.get_batch(batch).slice(place - int(self.first[batch]), 1)
        return _comparison(row.to_pylist()[0])

    def labels(self, name: str, places: np.ndarray) -> list[str]:
        found = np.empty(len(places), dtype=object)
        order = np.argsort(places, kind="stable")
        cuts = np.searchsorted(places[order], self.first)
        for batch, (start, stop) in enumerate(pairwise(cuts.tolist())):
            if start < stop:
                column = self._reader.get_batch(batch).column(name)
                found[order[start:stop]] = column.take(
                    _arrow(places[order[start:stop]] - self.first[batch])
                ).to_pylist()
        return found.tolist()


class Selection(Kept):
    """Some comparisons of several `StoredComparisons`.

    Args:
        stores: the files.
        origins: (C,) the file of each comparison.
        places: (C,) int64, its place in that file.
    """

    def __init__(self, stores: Sequence[StoredComparisons], origins: np.ndarray, places: np.ndarray) -> None:
        self.stores = stores
        self.origins = origins
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Comparison:
        return self.stores[self.origins[place]][int(self.places[place])]

    def labels(self, name: str, places: np.ndarray) -> list[str]:
        found = np.empty(len(places), dtype=object)
        for origin, store in enumerate(self.stores):
            own = np.flatnonzero(self.origins[places] == origin)
            if len(own):
                found[own] = store.labels(name, self.places[places[own]])
        return found.tolist()


def labels(comparisons: Sequence[Comparison], name: str, places: np.ndarray) -> list[str]:
    """One of `LABELS` of the comparisons at `places` (int64), of stored comparisons or of a list."""
    if isinstance(comparisons, Kept):
        return comparisons.labels(name, places)
    return [getattr(comparisons[place], name) for place in places]


def _arrow(places: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.array(places)


def _comparison(row: dict[str, Any]) -> Comparison:
    pairs = row["pairs"]
    return Comparison(
        prompt=_messages(row["prompt"]),
        responses=tuple(_messages(response) for response in row["responses"]),
        pairs=tuple(zip(pairs[::2], pairs[1::2], strict=True)),
        margin=row["margin"],
        target=row["target"],
        scores=None if row["scores"] is None else tuple(row["scores"]),
        **{name: row[name] for name in LABELS},
    )


def _messages(rows: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(rows)
