"""Rows under other names: somebody's columns as ours, and a label of the source's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aplot_lightning.data.comparisons import FIELDS, RowError
from aplot_lightning.data.sources.source import Row, Source, fingerprint_of
from aplot_lightning.data.sources.stream import Place, Stream
from aplot_lightning.errors import UserError

SHOWN = 12  # names of columns in a message


class Renamed(Source):
    """A source whose columns are read under our names.

    A column of theirs may lie inside another one, ``chosen: output.best``; inside a list of objects it is the list of
    what each of them holds, ``responses: completions.response``. A row without a column that is mapped is refused as
    missing_field.

    Args:
        source: yields the rows.
        columns: our name -> theirs, or None for a column of ours that means something else there and is left out.
        label: the source of rows that name none; by default the source's name.
    """

    def __init__(
        self, source: Source, columns: Mapping[str, str | None] | None = None, label: str | None = None
    ) -> None:
        self.source = source
        self.columns = {ours: theirs for ours, theirs in (columns or {}).items() if theirs is not None}
        self.left_out = set(columns or {}) - set(self.columns)
        self.label = label
        self.name = label or source.name
        self.path = None if label else source.path

    def __str__(self) -> str:
        return str(self.source)

    def rename(self, name: str) -> None:
        self.source.rename(name)
        self.name = name

    def fingerprint(self) -> str:
        return fingerprint_of(
            self.source.fingerprint(), self.name, repr((sorted(self.columns.items()), sorted(self.left_out)))
        )

    def rows(self) -> Iterator[Row]:
        """The rows under our names. Raises UserError at the end where a mapped column was in none of them."""
        missing = dict(self.columns)
        there: dict[str, None] = {}
        for where, row in self.source.rows():
            if not isinstance(row, Mapping):
                yield where, row
                continue
            if len(there) < SHOWN:
                there |= dict.fromkeys(map(str, row))
            yield where, self._renamed(row, missing)
        if missing and there:
            ours, theirs = next(iter(missing.items()))
            raise UserError(
                f"columns.{ours}: no row of {str(self.source)!r} has a column {theirs!r}; there are {', '.join(there)}"
            )

    def stream(self, place: Place | None = None) -> Stream:
        """The rows from a place on; a mapped column that no row has shows as rows refused, since there is no end."""
        inner = self.source.stream(place)
        renamed = ((where, self._renamed(row, {}) if isinstance(row, Mapping) else row) for where, row in inner.rows)
        return Stream(renamed, inner.read, inner.inner)

    def _renamed(self, row: Mapping[str, Any], missing: dict[str, str]) -> dict[str, Any] | RowError:
        """A row under our names, or why there is none; columns that are found leave `missing`."""
        moved = {column for column in self.columns.values() if column in row} | self.left_out
        renamed = {name: value for name, value in row.items() if name not in moved}
        error = None
        for ours, theirs in self.columns.items():
            try:
                renamed[ours] = row[theirs] if theirs in row else _inside(row, theirs.split("."))
                missing.pop(ours, None)
            except KeyError:
                error = error or RowError("missing_field", f"no {theirs!r}, which columns.{ours} names")
        return error or renamed


def _inside(value: Any, path: list[str]) -> Any:
    """What lies under a dotted path; null where something on the way is. Raises KeyError where there is no such."""
    if not path or value is None:
        return value
    if isinstance(value, list):
        return [_inside(item, path) for item in value]
    if not isinstance(value, Mapping):
        raise KeyError(path[0])
    return _inside(value[path[0]], path[1:])


def check_columns(columns: Any, key: str) -> dict[str, str | None]:
    """A mapping of our names to theirs as a config gives it. Raises UserError for any other value."""
    meant = "write our name: theirs, such as {prompt: question}"
    if not isinstance(columns, Mapping) or not columns:
        raise UserError(f"{key} is {columns!r}: {meant}")
    for ours, theirs in columns.items():
        if ours not in FIELDS:
            raise UserError(f"{key} has {ours!r}, which is no name of ours: {meant}; ours are {', '.join(FIELDS)}")
        if theirs is not None and not (isinstance(theirs, str) and theirs):
            raise UserError(f"{key}.{ours} is {theirs!r}: {meant}")
    return dict(columns)
