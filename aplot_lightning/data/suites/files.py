"""The files that a suite is spread over, and lists of rows in one JSON document."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.sources.files import GZIP, HEAD, File, head_of
from aplot_lightning.data.sources.folders import BESIDE, DICT, SHARD, STATE, Folder, is_folder, open_file
from aplot_lightning.data.sources.source import GIVE_A_FILE, Row, Source, one_line
from aplot_lightning.errors import UserError

EXAMPLES = "examples"  # where BIG-bench keeps a task's rows


class JsonList(File):
    """A JSON document that holds rows: a list of objects, or BIG-bench's task with its ``examples``.

    Args:
        path: the file, compressed with gzip or not.
    """

    def rows(self) -> Iterator[Row]:
        for number, row in enumerate(self._list(), 1):
            if not isinstance(row, dict):
                row = RowError("not_json", f"not a JSON object but {type(row).__name__}")
            yield f"{self.name}:{number}", row

    def _list(self) -> list[Any]:
        try:
            content = json.loads(_content(self.path))
        except (EOFError, zlib.error, OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{str(self.path)!r} is damaged, or no JSON ({one_line(error)}): fetch or write it again"
            ) from error
        rows = content.get(EXAMPLES) if isinstance(content, dict) else content
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{str(self.path)!r} holds no list of rows: {GIVE_A_FILE}, or the suite's own files")
        return rows


def parts_of(path: Path, names: str) -> list[tuple[Source, tuple[str, ...]]]:
    """The files of a suite in order, each with the names of its last two folders and its own, without endings.

    Args:
        path: a file, or a folder at any depth over the files.
        names: a pattern: where files under the folder match it, the others are passed over.

    Raises:
        UserError: there is no such file or folder, or none of its files can hold rows.
    """
    if not is_folder(path):
        return [_opened(path, path)]
    if (path / DICT).exists() or (path / STATE).exists():  # written by `datasets`
        folder = Folder(str(path))
        folder.shards()
        return [(folder, (path.absolute().name,))]
    try:
        inside = sorted(each for each in path.rglob("*") if SHARD.fullmatch(each.name) and each.is_file())
    except OSError as error:
        raise UserError(f"{str(path)!r} is a folder that cannot be read ({one_line(error)})") from error
    meant = [each for each in inside if re.fullmatch(names, each.name)] if names else []
    found = meant or [each for each in inside if not BESIDE.fullmatch(each.name)]
    if not found:
        raise UserError(f"{str(path)!r} is a folder without any file of rows: give the suite's own files or folder")
    return [_opened(each, path) for each in found]


def _opened(path: Path, given: Path) -> tuple[Source, tuple[str, ...]]:
    source: Source = JsonList(str(path)) if _is_document(path) else open_file(path)
    if path != given:
        source.rename(path.relative_to(given).as_posix())
    return source, (*path.absolute().parts[-3:-1], path.name.split(".")[0])


def _is_document(path: Path) -> bool:
    """Whether a file is one JSON document: a list, or an object over several lines."""
    start = head_of(path)
    if start.startswith(GZIP):
        try:
            with gzip.open(path) as file:
                start = file.read(HEAD)
        except (EOFError, zlib.error, OSError):
            return False  # the reader of lines says what is wrong
    start = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"{"):
        first = start.split(b"\n", 1)[0]
        return path.name.removesuffix(".gz").endswith(".json") and not _is_row(first)
    return start.startswith(b"[")


def _is_row(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and EXAMPLES not in row


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(GZIP) else content


def fingerprints(parts: Sequence[tuple[Source, tuple[str, ...]]]) -> list[str]:
    """What the files are: their names, contents and places."""
    return [text for source, places in parts for text in (source.name, *places, source.fingerprint())]
