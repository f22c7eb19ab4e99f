"""How rows lie in a file that grows by chunks: JSON lines, compressed ones, or a table that becomes Parquet."""

from __future__ import annotations

import gzip
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.inference.output import json_line

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS, GROUP_BYTES = 1 << 16, 64 << 20  # of a Parquet row group
AS_JSON = {b"aplot": b"json"}  # marks a column of a chunk whose values are texts of JSON


class Format(ABC):
    """Chunks are appended to a part file; each stands for itself, so that the file may be cut between any two."""

    @abstractmethod
    def encode(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        """One chunk, the same bytes for the same rows."""

    def finish(self, part: Path) -> list[str]:
        """Turns a whole part file into the output's format, in its place; what there is to tell, one line each."""
        return []


def format_of(output: Path) -> Format:
    """By the name: ``.parquet``, ``.gz``, or plain JSON lines."""
    return {".parquet": Table(), ".gz": Compressed()}.get(output.suffix.lower(), Lines())


class Lines(Format):
    def encode(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        return "".join(map(json_line, rows)).encode()


class Compressed(Lines):
    """A gzip member a chunk; their sequence is a gzip file."""

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        return gzip.compress(super().encode(rows), mtime=0)


class Table(Format):
    """An Arrow stream a chunk, with the types of its own rows; types are made one when all of them are known.

    A column whose values no single type holds (text in one row, messages in another) becomes JSON text, which `finish`
    tells, rather than stop a run in the middle.
    """

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        import pyarrow as pa

        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = [_column([row.get(name) for row in rows]) for name in names]
        schema = pa.schema(
            [
                pa.field(_text(name), array.type, metadata=AS_JSON if as_json else None)
                for name, (array, as_json) in zip(names, columns, strict=True)
            ]
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.record_batch([array for array, _ in columns], schema=schema))
        return sink.getvalue().to_pybytes()

    def finish(self, part: Path) -> list[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema, as_json = _common(_tables(part))
        whole = part.with_name(f"{part.name}.parquet")
        try:
            with pq.ParquetWriter(whole, schema) as writer:
                group: list[pa.Table] = []
                for table in _tables(part):
                    group.append(_fitted(table, schema, as_json))
                    if sum(t.num_rows for t in group) >= GROUP_ROWS or sum(t.nbytes for t in group) >= GROUP_BYTES:
                        writer.write_table(pa.concat_tables(group).combine_chunks())
                        group = []
                if group:
                    writer.write_table(pa.concat_tables(group).combine_chunks())
            with whole.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(whole, part)
        finally:
            whole.unlink(missing_ok=True)
        return [f"the column {name!r} holds values of several types: it is written as JSON text" for name in as_json]


def _column(values: list[Any]) -> tuple[pa.Array, bool]:
    """Values as one array, as texts of JSON where Parquet has no type for them."""
    import pyarrow as pa

    try:
        array = pa.array(values)
        if _storable(array.type):
            return array, False
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
        pass  # several types, half a character, a number of too many digits
    return pa.array([_as_json(value) for value in values], pa.string()), True


def _storable(kind: pa.DataType) -> bool:
    """Whether Parquet has such a type: a struct without fields it has not."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_storable(kind.field(place).type) for place in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _storable(kind.value_type)
    return True


def _as_json(value: Any) -> str | None:
    return None if value is None else json_line(value).rstrip("\n")


def _text(name: Any) -> str:
    return str(name).encode("utf-8", "backslashreplace").decode()


def _tables(part: Path) -> Iterator[pa.Table]:
    """The chunks in order."""
    import pyarrow as pa

    with part.open("rb") as file:
        while file.peek(1):
            yield pa.ipc.open_stream(file).read_all()


def _common(tables: Iterator[pa.Table]) -> tuple[pa.Schema, list[str]]:
    """A schema that holds every chunk, and the columns that are JSON text in it."""
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = {}
    as_json: dict[str, None] = {}
    for table in tables:
        for field in table.schema:
            known = kinds.setdefault(field.name, field.type)
            if field.metadata == AS_JSON:
                as_json[field.name] = None
            elif known != field.type:
                pair = [pa.schema([pa.field(field.name, kind)]) for kind in (known, field.type)]
                try:
                    kinds[field.name] = pa.unify_schemas(pair, promote_options="permissive").field(0).type
                except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
                    as_json[field.name] = None
    fields = [pa.field(name, pa.string() if name in as_json else kind) for name, kind in kinds.items()]
    return pa.schema(fields), list(as_json)


def _fitted(table: pa.Table, schema: pa.Schema, as_json: Sequence[str]) -> pa.Table:
    """A chunk with the columns and types of the whole."""
    import pyarrow as pa

    arrays = []
    for field in schema:
        place = table.schema.get_field_index(field.name)
        if place < 0:
            arrays.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(place)
        if field.name in as_json and table.schema.field(place).metadata != AS_JSON:
            column = pa.array([_as_json(value) for value in column.to_pylist()], pa.string())
        elif column.type != field.type:
            column = pa.array(column.to_pylist(), field.type)
        arrays.append(column)
    return pa.table(arrays, schema=schema)
