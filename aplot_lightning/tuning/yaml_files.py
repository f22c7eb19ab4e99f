"""YAML files of studies: read with every mistake in one line, and their nested keys as dotted ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from aplot_lightning.errors import UserError


def flat(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones. A class path with its arguments, and an empty mapping, stay values."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value and "class_path" not in value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, key: str) -> dict[str, Any]:
    """The keys of a YAML file. Raises UserError, with the key that named it, where it has none."""
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror}); name a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise UserError(f"{key}: {where}: {what}; mend the YAML") from None
    if not isinstance(content, dict):
        raise UserError(f"{key}: {path} holds no keys: write one `key: value` a line, as in conf/")
    return content
