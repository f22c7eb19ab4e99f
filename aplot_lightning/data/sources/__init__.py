"""Where comparisons come from: JSONL and Parquet files, hub data sets, and whatever else yields rows.

A source yields rows with their places and knows nothing of what a comparison is; `read_comparisons` turns its rows into
comparisons and accounts for each of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from aplot_lightning.data.sources.files import JsonLines, Parquet, exists, expanded, open_file
from aplot_lightning.data.sources.hub import HubDataset
from aplot_lightning.data.sources.reading import read_comparisons
from aplot_lightning.data.sources.source import GIVE_A_FILE, Source
from aplot_lightning.errors import UserError

__all__ = ["HubDataset", "JsonLines", "Parquet", "Source", "open_source", "read_comparisons"]

FILE_LIKE = re.compile(r"[./~]|.*\.(jsonl?|ndjson|gz|parquet|txt|csv|tsv|arrow|zip|bz2|xz|zst)$", re.IGNORECASE)
HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<split>[\w.+%:\[\]-]+))?")


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
        path = expanded(text)
        hub = HUB_NAME.fullmatch(text)
        if hub is not None and not FILE_LIKE.match(text) and not exists(path):
            return HubDataset(hub["name"], hub["split"] or "train")
        return open_file(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
