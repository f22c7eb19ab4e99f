"""Folders: shards in any of the kinds of files, and what `datasets` writes by ``save_to_disk``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aplot_lightning.data.sources.files import GZIP, JsonLines, content_digest, expanded, head_of, is_text
from aplot_lightning.data.sources.source import GIVE_A_FILE, Row, Source, fingerprint_of, one_line
from aplot_lightning.data.sources.tables import ARROW_FILE, ARROW_STREAM, PARQUET, Arrow, Parquet
from aplot_lightning.errors import UserError

SHARD = re.compile(r".*\.((jsonl|ndjson|json)(\.gz)?|parquet|arrow)", re.IGNORECASE)
BESIDE = re.compile(r"[._].*|.*\.md|(readme|licen[cs]e).*|dataset_infos?\.json", re.IGNORECASE)  # no rows meant
SPLIT = re.compile(r"(?P<hub>\w+)-\d{5}-of-\d{5}\..*|(?P<plain>train|validation|valid|val|dev|eval|test)([-_.].*)")
DICT, STATE = "dataset_dict.json", "state.json"  # what `datasets` writes beside its Arrow files
MEANT = "give a folder of JSONL or Parquet shards alone, one that `datasets` saved, or one file"


class Folder(Source):
    """A folder of JSONL, Parquet or Arrow shards, read in the order of their names, or one written by `save_to_disk`.

    Args:
        path: the folder; hidden files, a README, a licence and `datasets`' own notes may lie in it.
        split: of a folder with several splits the one to read: saved ones, or shards whose names begin with it.
    """

    def __init__(self, path: str, split: str | None = None) -> None:
        self.path: Path = expanded(path)
        self.split = split
        self.name = self.path.absolute().name + (f":{split}" if split else "")

    def __str__(self) -> str:
        return f"{self.path}:{self.split}" if self.split else str(self.path)

    def fingerprint(self) -> str:
        """Hex digest of the names and the bytes of all shards."""
        shards = (text for path in self.shards() for text in (path.name, content_digest(path)))
        return fingerprint_of(type(self).__qualname__, self.name, *shards)

    def rows(self) -> Iterator[Row]:
        shards = [open_file(path) for path in self.shards()]
        kinds = {type(shard).__name__: shard for shard in shards}
        if len(kinds) > 1:
            names = " and ".join(repr(shard.name) for shard in kinds.values())
            raise UserError(f"{str(self.path)!r} is a folder with shards of several kinds ({names}): {MEANT}")
        for shard in shards:
            shard.name = f"{self.name}/{shard.name}"
            yield from shard.rows()

    def shards(self) -> list[Path]:
        """The files in order. Raises UserError where the folder has none, or it is not clear which are meant."""
        shown = repr(str(self.path))
        try:
            inside = sorted(self.path.iterdir())
        except OSError as error:
            raise UserError(f"{shown} is a folder that cannot be read ({one_line(error)}): {GIVE_A_FILE}") from error
        names = {path.name for path in inside}
        if DICT in names:
            splits = [str(name) for name in _listed(self.path / DICT, "splits")]
            return _saved(self.path / _choice(splits, self.split, shown))
        if STATE in names:
            if self.split is not None:
                raise UserError(f"{shown} was saved without splits: leave out split {self.split!r}")
            return _saved(self.path)
        others = [path.name for path in inside if not BESIDE.fullmatch(path.name)]
        odd = [
            path.name for path in inside if path.name in others and not (SHARD.fullmatch(path.name) and path.is_file())
        ]
        if odd:
            raise UserError(f"{shown} is a folder that holds {odd[0]!r}, which is no shard: {MEANT}")
        if not others:
            raise UserError(f"{shown} is a folder without any shard: {MEANT}")
        splits = sorted({split for split in map(_split_of, others) if split is not None})
        if self.split is not None or len(splits) > 1:
            chosen = _choice(splits, self.split, shown)
            others = [name for name in others if _split_of(name) == chosen]
        return [self.path / name for name in others]


def open_path(path: Path, split: str | None = None) -> Source:
    """The source that a file or folder is.

    Raises:
        UserError: it cannot be read or is of no known kind, or a split of what has none.
    """
    if is_folder(path):
        folder = Folder(str(path), split)
        folder.shards()
        return folder
    source = open_file(path)
    if split is not None:
        raise UserError(f"{str(path)!r} is one file and has no split {split!r}: leave `split` out")
    return source


def is_folder(path: Path) -> bool:
    """Whether there is a folder under this path that this user can see."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def open_file(path: Path) -> JsonLines | Parquet | Arrow:
    """The source that a file is by its content. Raises UserError where it cannot be read or is of no known kind."""
    head = head_of(path)
    if head.startswith(PARQUET):
        return Parquet(str(path))
    if head.startswith((ARROW_FILE, ARROW_STREAM)):
        return Arrow(str(path))
    if path.suffix.lower() in {".csv", ".tsv"}:
        raise UserError(f"{str(path)!r} is a table of text: {GIVE_A_FILE}, as pandas or `datasets` write one from it")
    if head.startswith(GZIP) or is_text(head):
        return JsonLines(str(path))
    raise UserError(f"{str(path)!r} is no text, gzip, Parquet or Arrow file: {GIVE_A_FILE}")


def _saved(folder: Path) -> list[Path]:
    """The files of one data set that `datasets` saved."""
    names = [
        entry.get("filename") if isinstance(entry, dict) else None for entry in _listed(folder / STATE, "_data_files")
    ]
    if not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise UserError(f"{str(folder / STATE)!r} does not name the data set's files: save it again")
    return [folder / str(name) for name in names]


def _listed(path: Path, field: str) -> list[Any]:
    """A list that a note of `datasets` holds. Raises UserError where it does not."""
    head_of(path)
    try:
        found = json.loads(path.read_bytes())[field]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{str(path)!r} is no note of `datasets` ({one_line(error)}): save the data set again"
        ) from error
    if not isinstance(found, list):
        raise UserError(f"{str(path)!r} is no note of `datasets` ({field} is no list): save the data set again")
    return found


def _choice(splits: Sequence[str], split: str | None, shown: str) -> str:
    """The split that is meant. Raises UserError where it is not there, or one of several has to be named."""
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise UserError(f"{shown} is a folder with several splits, {', '.join(splits)}: name one by the option `split`")
    if split not in splits:
        there = f"it has {', '.join(splits)}" if splits else "no name of a file in it begins with a split's"
        raise UserError(f"{shown} has no split {split!r}: {there}")
    return split


def _split_of(name: str) -> str | None:
    """The split that a shard's name tells: ``train-00000-of-00002.parquet``, ``test.jsonl.gz``."""
    found = SPLIT.fullmatch(name)
    return found and (found["hub"] or found["plain"])
