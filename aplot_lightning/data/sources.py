"""Where comparisons come from: JSONL and Parquet files, hub data sets, and whatever else yields rows.

A source yields rows with their places and knows nothing of what a comparison is; `read_comparisons` turns its rows into
comparisons and accounts for each of them.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from abc import ABC, abstractmethod
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from aplot_lightning.data.comparisons import Comparison, RowError, digest, parse_comparison
from aplot_lightning.data.report import SourceLedger
from aplot_lightning.errors import UserError

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
HEAD = 64 * 1024  # bytes that tell what a file is
FILE_LIKE = re.compile(r"[./~]|.*\.(jsonl?|ndjson|gz|parquet|txt|csv|tsv|arrow|zip|bz2|xz|zst)$", re.IGNORECASE)
HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<split>[\w.+%:\[\]-]+))?")
GIVE_A_FILE = "give a JSONL (also .gz) or Parquet file"

Row = tuple[str, Any]


class Source(ABC):
    """Rows of preference data in the layouts of `parse_comparison`.

    Attributes:
        name: short name, the beginning of each row's place and the default of its ``source``.
    """

    name: str

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yields (where, row) in order; in place of a row that is none a RowError.

        Raises:
            UserError: the source cannot be read, or not to its end.
        """


class JsonLines(Source):
    """A file with one JSON object a line, compressed with gzip or not, whatever its name ends in.

    Args:
        path: the file; UTF-8, with or without a byte order mark, empty lines ignored.
    """

    def __init__(self, path: str) -> None:
        self.path = _expanded(path)
        self.name = self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[Row]:
        head = _head(self.path)
        if not head.startswith(GZIP) and not _is_text(head):
            raise UserError(f"{str(self.path)!r} is no text, gzip or Parquet file: {GIVE_A_FILE}")
        number = 0
        try:
            with gzip.open(self.path) if head.startswith(GZIP) else self.path.open("rb") as file:
                for number, line in enumerate(_lines(file), 1):
                    if line.strip():
                        yield f"{self.name}:{number}", _parse_line(line)
        except (EOFError, zlib.error, OSError) as error:
            raise UserError(
                f"{str(self.path)!r} is damaged after line {number} ({_one_line(error)}): fetch or write it again"
            ) from error


class Parquet(Source):
    """A Parquet file with a row for each comparison.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = _expanded(path)
        self.name = self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        _head(self.path)
        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{self.name}:{number}", row
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"{str(self.path)!r} is damaged, or no Parquet file, after row {number} ({_one_line(error)}): "
                "fetch or write it again"
            ) from error


class HubDataset(Source):
    """A split of a data set on the Hugging Face hub, or of a folder that `datasets` can load.

    Args:
        name: the data set, such as ``Anthropic/hh-rlhf``.
        split: the split, or a slice of it as `datasets` writes it (``train[:1000]``).
        config: the data set's configuration, where it has several.
    """

    def __init__(self, name: str, split: str = "train", config: str | None = None) -> None:
        self.dataset = name
        self.split = split
        self.config = config
        self.name = f"{name}:{split}"

    def __str__(self) -> str:
        return self.name

    def rows(self) -> Iterator[Row]:
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        try:
            rows: Iterable[Any] = datasets.load_dataset(self.dataset, self.config, split=self.split)
        except Exception as error:  # the hub, its client, and each builder raise their own
            raise UserError(
                f"{self.dataset!r} is no file, and its split {self.split!r} cannot be read from the hub "
                f"({_one_line(error)}): check the name and the network, or {GIVE_A_FILE}"
            ) from error
        for number, row in enumerate(rows, 1):
            yield f"{self.name}:{number}", row


def open_source(value: Any, key: str) -> Source:
    """The source that a config names: a Source itself, a file by its content, or a data set on the hub.

    A text that begins with ``.``, ``/`` or ``~``, or ends like a data file, names a file. Any other that is no file is
    a hub data set, its train split or the one after a colon: ``Anthropic/hh-rlhf:test``.

    Args:
        value: path or hub name, or any object with a name and rows().
        key: the config key for messages, such as ``data.ood.llmbar``.

    Raises:
        UserError: no such file, a folder, a file that cannot be read or is none of the known kinds.
    """
    if not isinstance(value, str | Path):
        if hasattr(value, "rows") and hasattr(value, "name"):
            return value
        raise UserError(f"{key} is {value!r}: {GIVE_A_FILE}, a hub name, or a source class")
    text = str(value)
    try:
        path = _expanded(text)
        hub = HUB_NAME.fullmatch(text)
        if hub is not None and not FILE_LIKE.match(text) and not _exists(path):
            return HubDataset(hub["name"], hub["split"] or "train")
        head = _head(path)
        if head.startswith(PARQUET):
            return Parquet(text)
        if head.startswith(GZIP) or _is_text(head):
            return JsonLines(text)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    raise UserError(f"{key}: {text!r} is no text, gzip or Parquet file: {GIVE_A_FILE}")


def read_comparisons(
    source: Source, *, key: str, ledger: SourceLedger, on_bad_row: Literal["skip", "error"] = "skip"
) -> list[Comparison]:
    """Reads a source to its end; each row becomes a comparison or is counted as refused.

    Two rows contradict each other when, for the same prompt, one prefers a response that the other rejects in favour of
    the same counterpart; both are refused. A row with the prompt and the pairs of an earlier one is a duplicate.

    Args:
        source: yields the rows.
        key: the config key for messages.
        ledger: the source's account: read and refused are counted here, what is used only when it has been encoded.
        on_bad_row: ``skip`` and count bad rows, or stop at one (``error``).

    Raises:
        UserError: the source cannot be read, has no row, or none that can be used; with ``error`` also any bad row.
    """

    def refuse(kind: str, where: str, message: str) -> None:
        if on_bad_row == "error":
            raise UserError(
                f"{key}: {where}: {message} ({kind}): mend or remove this row of {source}, "
                "or set data.on_bad_row to skip"
            )
        ledger.refuse(kind, where, message)

    comparisons = []
    for where, row in _rows(source, key):
        ledger.read += 1
        try:
            if isinstance(row, RowError):
                raise row
            comparisons.append(parse_comparison(row, where, source.name))
        except RowError as error:
            refuse(error.kind, where, str(error))
    if not ledger.read:
        raise UserError(f"{key}: {str(source)!r} has no rows: {GIVE_A_FILE} with at least one")
    kept = _without_conflicts(comparisons, refuse)
    if not kept:
        raise UserError(f"{key}: none of the {ledger.read} rows of {str(source)!r} can be used ({ledger.reasons()})")
    return kept


def _rows(source: Source, key: str) -> Iterator[Row]:
    rows = iter(source.rows())
    while True:
        try:
            row = next(rows, None)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        if row is None:
            return
        yield row


def _without_conflicts(comparisons: list[Comparison], refuse: Callable[[str, str, str], None]) -> list[Comparison]:
    """The comparisons that contradict none and repeat none before them; the others go to `refuse`."""
    orders, rows = [], []  # digests of each comparison's pairs as (preferred, other); and of the row as a whole
    first: dict[bytes, int] = {}
    for place, comparison in enumerate(comparisons):
        preferred, row = _digests(comparison)
        orders.append(preferred)
        rows.append(row)
        for this, _ in preferred:
            first.setdefault(this, place)
    kept: list[Comparison] = []
    earlier: dict[bytes, str] = {}
    for comparison, preferred, row in zip(comparisons, orders, rows, strict=True):
        against = next((first[opposite] for _, opposite in preferred if opposite in first), None)
        if against is not None:
            refuse("contradiction", comparison.where, f"prefers the opposite of {comparisons[against].where}")
        elif row in earlier:
            refuse("duplicate", comparison.where, f"the same as {earlier[row]}")
        else:
            earlier[row] = comparison.where
            kept.append(comparison)
    return kept


def _digests(comparison: Comparison) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """For each pair a digest of its order and one of the opposite order, and a digest of all pairs as they are listed.

    A target below one half prefers the response that is listed as rejected; one half prefers neither.
    """
    prompt, *responses = (
        digest(*(text for message in messages for text in message.values()))
        for messages in (comparison.prompt, *comparison.responses)
    )
    ordered = [
        (prompt + responses[winner] + responses[loser], prompt + responses[loser] + responses[winner])
        for winner, loser in comparison.pairs
    ]
    listed = ordered[0][0] if len(ordered) == 1 else digest(*sorted(order for order, _ in ordered))
    if comparison.target is None or comparison.target > 0.5:
        return ordered, listed
    return [] if comparison.target == 0.5 else [(opposite, order) for order, opposite in ordered], listed


# Files


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"no such file: {path!r} ({error})") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be looked into
        return False


def _head(path: Path) -> bytes:
    """The first bytes of a file. Raises UserError where there is no file that can be read, or it is empty."""
    shown = repr(str(path))
    try:
        if path.is_dir():
            raise UserError(f"{shown} is a folder: {GIVE_A_FILE}")
        if path.exists() and not path.is_file():
            raise UserError(f"{shown} is no regular file: {GIVE_A_FILE}")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise UserError(
            f"no such file: {shown} (looked in {str(Path.cwd())!r}): {GIVE_A_FILE}, or a hub name"
        ) from error
    except PermissionError as error:
        raise UserError(f"{shown} may not be read: give this user permission to read it") from error
    except OSError as error:
        raise UserError(f"{shown} cannot be read ({_one_line(error)}): {GIVE_A_FILE}") from error
    if not head:
        raise UserError(f"{shown} has no rows, it is empty: {GIVE_A_FILE} with at least one")
    return head


def _is_text(head: bytes) -> bool:
    """Whether a file's beginning is UTF-8 text, or has at least one object as text: single bad lines are bad rows."""
    lines = [line for line in head.split(b"\n") if line.strip()]
    return all(map(_decodes, lines)) or any(line.lstrip().startswith(b"{") and _decodes(line) for line in lines)


def _decodes(line: bytes) -> bool:
    try:
        getincrementaldecoder("utf-8")().decode(line)  # the last line may be cut inside a character
    except UnicodeDecodeError:
        return False
    return b"\0" not in line


def _lines(file: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(file):
        yield line.removeprefix(BOM_UTF8) if number == 0 else line


def _parse_line(line: bytes) -> Any:
    """The JSON object of a line, or a RowError that says why there is none."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return RowError("not_json", f"not UTF-8 text from byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return RowError("not_json", f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
        return RowError("not_json", f"not JSON: {_one_line(error)}")
    if not isinstance(row, dict):
        return RowError("not_json", f"not a JSON object but a {type(row).__name__}: one object a line is meant")
    return row


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
