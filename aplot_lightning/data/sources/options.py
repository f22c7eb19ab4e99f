"""A source with options, as a config writes it: ``{path: pairs.jsonl, columns: {prompt: question}, weight: 2}``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aplot_lightning.data.sources.class_paths import open_class
from aplot_lightning.data.sources.columns import Renamed, check_columns
from aplot_lightning.data.sources.files import expanded
from aplot_lightning.data.sources.folders import open_path
from aplot_lightning.data.sources.hub import HubDataset
from aplot_lightning.data.sources.source import Source
from aplot_lightning.errors import UserError

KEYS = ("path", "name", "split", "config", "columns", "weight", "source", "streaming", "suite")


def open_options(options: Mapping[Any, Any], key: str) -> Source:
    """The source that a dict of options describes.

    Args:
        options: class_path and init_args of a `Source`; or ``path`` of a file or folder or ``name`` of a hub data set,
            and any other of `KEYS`: ``split``, ``config`` (hub only), ``columns`` (our names: theirs), ``weight``
            (data.train only), ``source`` (the label of rows that name none), ``streaming``, ``suite`` (the public
            benchmark whose own files ``path`` or ``name`` has, see `data.suites`).
        key: the config key for messages.

    Raises:
        UserError: an unknown key, a value of the wrong kind, or a source that cannot be opened.
    """
    if "class_path" in options:
        return open_class(options, key)
    given = {name: value for name, value in options.items() if value is not None}
    unknown = [name for name in given if name not in KEYS]
    if unknown:
        raise UserError(f"{key} has no option {unknown[0]!r}: its options are {', '.join(KEYS)}")
    if ("path" in given) == ("name" in given):
        raise UserError(f"{key} needs either `path` (a file or folder) or `name` (a hub data set)")
    for name in ("path", "name", "split", "config", "source", "suite"):
        if name in given and not (isinstance(given[name], str) and given[name].strip()):
            raise UserError(f"{key}.{name} is {given[name]!r}: a text is meant")
    columns = check_columns(given["columns"], f"{key}.columns") if "columns" in given else {}
    weight = check_weight(given.get("weight", 1.0), key)
    streaming = given.get("streaming", False)
    if not isinstance(streaming, bool):
        raise UserError(f"{key}.streaming is {streaming!r}: true or false is meant")
    source = _open(given, key)
    source.streaming = streaming
    if columns or "source" in given:
        source = Renamed(source, columns, given.get("source"))
    source.weight, source.streaming = weight, streaming
    return source


def _open(given: Mapping[str, Any], key: str) -> Source:
    if "suite" in given:
        return _open_suite(given, key)
    if "name" in given:
        return HubDataset(given["name"], given.get("split", "train"), given.get("config"))
    if "config" in given:
        raise UserError(f"{key}.config belongs to a hub data set: give its `name` in place of `path`, or leave it out")
    try:
        return open_path(expanded(given["path"]), given.get("split"))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _open_suite(given: Mapping[str, Any], key: str) -> Source:
    from aplot_lightning.data.suites import Suite  # which reads by the sources here

    if "config" in given or ("split" in given and "path" in given):
        raise UserError(f"{key}: a suite's configurations are known: leave out `config`, and `split` beside `path`")
    name = f"{given['name']}:{given['split']}" if "split" in given else given.get("name")
    try:
        return Suite(given["suite"], name or given["path"])
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def check_weight(weight: Any, key: str) -> float:
    """A source's weight as a number. Raises UserError for one that is none, or where none is of use."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not (0 < weight < math.inf):
        raise UserError(f"{key}.weight is {weight!r}: a number above 0 is meant, 2 to draw its comparisons twice")
    if weight != 1 and not key.startswith("data.train"):
        raise UserError(f"{key}.weight: only sources of data.train are drawn by weight; leave it out")
    return float(weight)
