"""Files of JSON lines, and everything that can be wrong with a file."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.sources.source import GIVE_A_FILE, Row, Source, fingerprint_of, one_line
from aplot_lightning.errors import UserError

GZIP = b"\x1f\x8b"
HEAD = 64 * 1024  # bytes that tell what a file is


class File(Source):
    """A file with a row for each comparison.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path: Path = expanded(path)
        self.name = self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def fingerprint(self) -> str:
        """Hex digest of the name and the file's bytes."""
        return fingerprint_of(type(self).__qualname__, self.name, content_digest(self.path))


class JsonLines(File):
    """A file with one JSON object a line, compressed with gzip or not, whatever its name ends in.

    Args:
        path: the file; UTF-8, with or without a byte order mark, empty lines ignored.
    """

    def rows(self) -> Iterator[Row]:
        head = head_of(self.path)
        if not head.startswith(GZIP) and not is_text(head):
            raise UserError(f"{str(self.path)!r} is no text, gzip or Parquet file: {GIVE_A_FILE}")
        number = 0
        try:
            with gzip.open(self.path) if head.startswith(GZIP) else self.path.open("rb") as file:
                for number, line in enumerate(_lines(file), 1):
                    if line.strip():
                        yield f"{self.name}:{number}", _parse_line(line)
        except (EOFError, zlib.error, OSError) as error:
            raise UserError(
                f"{str(self.path)!r} is damaged after line {number} ({one_line(error)}): fetch or write it again"
            ) from error


def expanded(path: str) -> Path:
    """A path with its ``~`` replaced. Raises UserError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"no such file: {path!r} ({error})") from error


def exists(path: Path) -> bool:
    """Whether there is something under this path that this user can see."""
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be looked into
        return False


def head_of(path: Path) -> bytes:
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
        raise UserError(f"{shown} cannot be read ({one_line(error)}): {GIVE_A_FILE}") from error
    if not head:
        raise UserError(f"{shown} has no rows, it is empty: {GIVE_A_FILE} with at least one")
    return head


def content_digest(path: Path) -> str:
    """Hex SHA-256 of a file's bytes. Raises UserError where it cannot be read."""
    head_of(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({one_line(error)}): {GIVE_A_FILE}") from error


def is_text(head: bytes) -> bool:
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


class _TwiceError(ValueError):
    """A key that an object has twice: JSON keeps the last in silence."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _parse_line(line: bytes) -> Any:
    """The JSON object of a line, or a RowError that says why there is none."""
    text = line.strip()
    meant = "one object a line is meant" + (", as `jq -c '.[]'` writes a list of them" if text[:1] == b"[" else "")
    try:
        row = json.loads(text.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return RowError("not_json", f"not UTF-8 text from byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return RowError("not_json", f"not JSON: {error.msg} at column {error.colno}; {meant}")
    except _TwiceError as error:
        return RowError("not_json", f"the key {str(error)[:50]!r} stands twice in one object: leave one of them")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
        return RowError("not_json", f"not JSON: {one_line(error)}")
    if not isinstance(row, dict):
        return RowError("not_json", f"not a JSON object but {type(row).__name__}: {meant}")
    return row
