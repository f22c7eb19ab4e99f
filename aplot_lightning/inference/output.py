"""Files that a command writes: refused where one is there, whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from aplot_lightning.errors import UserError


def check_output(output: str, overwrite: bool, inputs: Mapping[str, str | None]) -> Path:
    """The file that a command may write.

    Args:
        output: what the user named, JSONL or JSONL.gz.
        overwrite: an existing one may be replaced.
        inputs: option -> file that the command reads, which is never replaced.

    Raises:
        UserError: it exists, is a folder or lies in none, is Parquet, or is one of the inputs.
    """
    path = Path(output).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--output: {output} is a folder or lies in one that does not exist: name a file")
    if path.suffix == ".parquet":
        raise UserError(f"--output: {output}: only JSONL is written: name a .jsonl or .jsonl.gz file")
    for key, value in inputs.items():
        if value is not None and path.exists() and Path(value).exists() and path.samefile(value):
            raise UserError(f"--output: {output} is {key} itself: name another file")
    if path.exists() and not overwrite:
        raise UserError(f"--output: {output} exists already: name another file or add --overwrite true")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A file beside `path` that takes its place when all went well and vanishes when not.

    Raises UserError where it cannot be written, such as on a full disk.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with (
            gzip.open(part, "wt", encoding="utf-8")
            if path.suffix == ".gz"
            else part.open("w", encoding="utf-8") as file
        ):
            yield file
        part.replace(path)
    except OSError as error:
        raise UserError(f"--output: {path} could not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def json_line(row: Mapping[str, Any]) -> str:
    """One line of JSON, text as it is; escaped only where it is no valid Unicode."""
    line = json.dumps(row, ensure_ascii=False, default=str)  # Parquet may hold dates
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row, default=str)
    return line + "\n"
