"""Parquet and Arrow files: tables with a row for each comparison."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from aplot_lightning.data.sources.files import File, head_of
from aplot_lightning.data.sources.source import Row, one_line
from aplot_lightning.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = b"PAR1"
ARROW_FILE, ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
ROWS = 1024  # rows turned into Python objects at once


class Table(File):
    """A file that holds a table with a row for each comparison."""

    kind: str

    def rows(self) -> Iterator[Row]:
        import pyarrow as pa

        head_of(self.path)
        number = 0
        try:
            for batch in self._batches():
                batch.validate(full=True)  # what a damaged file gives may point anywhere
                decode = {field.name: _decoder(field.type) for field in batch.schema}
                for row in batch.to_pylist():
                    number += 1
                    yield f"{self.name}:{number}", {name: decode[name](value) for name, value in row.items()}
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{str(self.path)!r} is damaged, or no {self.kind} file, after row {number} ({one_line(error)}): "
                "fetch or write it again"
            ) from error

    @abstractmethod
    def _batches(self) -> Iterator[pa.RecordBatch]:
        """The table in order, at most `ROWS` rows at once; raises what pyarrow raises."""


class Parquet(Table):
    """A Parquet file with a row for each comparison.

    Args:
        path: the file.
    """

    kind = "Parquet"

    def _batches(self) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            yield from file.iter_batches(batch_size=ROWS)


class Arrow(Table):
    """An Arrow file with a row for each comparison, in the stream format, as `datasets` writes it, or the file format.

    Args:
        path: the file.
    """

    kind = "Arrow"

    def _batches(self) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        with ExitStack() as stack:
            file = stack.enter_context(pa.OSFile(str(self.path)))  # a memory map would keep all of it resident
            if head_of(self.path).startswith(ARROW_FILE):
                reader = stack.enter_context(pa.ipc.open_file(file))
                batches = map(reader.get_batch, range(reader.num_record_batches))
            else:
                batches = iter(stack.enter_context(pa.ipc.open_stream(file)))
            for batch in batches:
                batch.validate(full=True)
                yield from (batch.slice(start, ROWS) for start in range(0, batch.num_rows, ROWS))


def _decoder(kind: Any) -> Callable[[Any], Any]:
    """From a value of an Arrow type to what it stands for: JSON in an extension type, as `datasets` writes it."""
    import pyarrow as pa

    if getattr(kind, "extension_name", None) == "arrow.json":
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _decoder(kind.value_type)
        return _same if inner is _same else lambda value: None if value is None else [inner(item) for item in value]
    return _same


def _same(value: Any) -> Any:
    return value
