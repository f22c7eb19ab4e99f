"""Sources given as ``{class_path: ..., init_args: {...}}`` that the command line could not make, or that Python gives.

The command line reads a class path itself; where that fails it leaves the dict as it is, and here is said why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from inspect import isabstract, isclass, signature
from typing import Any

from aplot_lightning.data.sources.source import Source, one_line
from aplot_lightning.errors import UserError

MEANT = "the path of a class of sources is meant, such as aplot_lightning.data.world.PreferenceWorld"


def open_class(value: Mapping[Any, Any], key: str) -> Source:
    """The source that a class path with its arguments describes. Raises UserError for a wrong one of either."""
    from jsonargparse import ArgumentError, ArgumentParser

    others = [name for name in value if name not in ("class_path", "init_args")]
    if others:
        raise UserError(f"{key} has {others[0]!r} beside class_path: only init_args may stand there")
    found = _class(value["class_path"], key)
    arguments = value.get("init_args") or {}
    accepted = ", ".join(signature(found).parameters) or "none"
    if not isinstance(arguments, Mapping):
        raise UserError(f"{key}.init_args is {arguments!r}: arguments by name are meant, of {accepted}")
    for name in arguments:
        if name not in signature(found).parameters:
            raise UserError(f"{key}.init_args: {found.__name__} accepts no {name!r}, only {accepted}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, "init_args", sub_configs=False)
    try:
        config = parser.parse_object({"init_args": dict(arguments)})
    except ArgumentError as error:
        raise UserError(f"{key}.{_argument(one_line(error))}") from error
    return parser.instantiate(config).init_args


def _argument(said: str) -> str:
    """What jsonargparse says of a wrong argument, after its name and without Python's own spelling of types."""
    said = re.sub(r'^Parser key "init_args\.([^"]+)":\s*', r"\1: ", said)
    return re.sub(
        r"Expected a (?:typing\.Literal\[([^]]*)\]|<class '(\w+)'>)",
        lambda m: f"Expected {(m[1] and f'one of {m[1]}') or m[2]}",
        said,
    )


def _class(path: Any, key: str) -> type[Source]:
    if not isinstance(path, str) or "." not in path:
        raise UserError(f"{key}.class_path is {path!r}: {MEANT}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}.class_path: {one_line(error)}: {MEANT}") from error
    if not isclass(found) or not issubclass(found, Source) or isabstract(found):
        raise UserError(f"{key}.class_path: {path} is no class of sources: {MEANT}")
    return found
