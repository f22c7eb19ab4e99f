"""Where comparisons come from: files, folders of shards, hub data sets, and whatever else yields rows.

A source yields rows with their places and knows nothing of what a comparison is; `preparation` turns its rows into
comparisons and accounts for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aplot_lightning.data.sources.columns import Renamed
from aplot_lightning.data.sources.files import JsonLines, exists, expanded
from aplot_lightning.data.sources.folders import Folder, open_path
from aplot_lightning.data.sources.hub import HubDataset
from aplot_lightning.data.sources.options import check_weight, open_options
from aplot_lightning.data.sources.source import GIVE_A_FILE, Source, fingerprint_of
from aplot_lightning.data.sources.tables import Arrow, Parquet
from aplot_lightning.errors import UserError

__all__ = [
    "Arrow",
    "Folder",
    "HubDataset",
    "JsonLines",
    "Parquet",
    "Renamed",
    "Source",
    "fingerprint_of",
    "open_source",
    "open_sources",
]

FILE_LIKE = re.compile(r"[./~]|.*\.(jsonl?|ndjson|gz|parquet|txt|csv|tsv|arrow|zip|bz2|xz|zst)$", re.IGNORECASE)
HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<split>[\w.+%:\[\]-]+))?")


def open_source(value: Any, key: str) -> Source:
    """The source that a config names: a Source itself, a file or folder by its content, or a data set on the hub.

    A text that begins with ``.``, ``/`` or ``~``, or ends like a data file, names a file. Any other that is no file is
    a hub data set, its train split or the one after a colon: ``Anthropic/hh-rlhf:test``.

    Args:
        value: path or hub name, a dict of options (see `open_options`), or a Source.
        key: the config key for messages, such as ``data.ood.llmbar``.

    Raises:
        UserError: no such file, one that cannot be read or is none of the known kinds, or a wrong option.
    """
    if isinstance(value, Source):
        check_weight(value.weight, key)
        return value
    if isinstance(value, Mapping):
        return open_options(value, key)
    if not isinstance(value, str | Path):
        several = "; several sources can only be trained on" if isinstance(value, list | tuple) else ""
        raise UserError(f"{key} is {value!r}: {GIVE_A_FILE}, a hub name, or a source class{several}")
    text = str(value)
    try:
        path = expanded(text)
        hub = HUB_NAME.fullmatch(text)
        if hub is not None and not FILE_LIKE.match(text) and not exists(path):
            return HubDataset(hub["name"], hub["split"] or "train")
        return open_path(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def open_sources(value: Any, key: str) -> list[Source]:
    """The sources of ``data.train``: one as `open_source` takes it, or a list of them, each with a name of its own.

    Raises:
        UserError: an empty list, two sources of one name, or what `open_source` raises; the key then counts from 0.
    """
    if not isinstance(value, list | tuple):
        return [open_source(value, key)]
    if not value:
        raise UserError(f"{key} is an empty list: {GIVE_A_FILE}, a hub name, or a list of them")
    sources = [open_source(item, f"{key}[{place}]") for place, item in enumerate(value)]
    _tell_apart(sources, key)
    return sources


def _tell_apart(sources: Sequence[Source], key: str) -> None:
    """Puts folders before the names of files that share one. Raises UserError where that does not tell them apart."""
    by_name: dict[str, list[Source]] = {}
    for source in sources:
        by_name.setdefault(source.name, []).append(source)
    for name, alike in by_name.items():
        folders = [source.path.absolute().parent.parts if source.path is not None else () for source in alike]
        if len(set(folders)) == len(alike) > 1:
            depth = next(depth for depth in range(1, 999) if len({parts[-depth:] for parts in folders}) == len(alike))
            for source, parts in zip(alike, folders, strict=True):
                if parts:
                    source.rename("/".join([*parts[-depth:], name]))
    named: dict[str, Source] = {}
    for source in sources:
        other = named.setdefault(source.name, source)
        if other is not source:
            raise UserError(
                f"{key}: two sources are named {source.name!r} ({other} and {source}): leave one out, or tell them "
                "apart by the option `source`"
            )
