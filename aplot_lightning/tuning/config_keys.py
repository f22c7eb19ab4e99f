"""Config keys as `fit` names them (``model.objective.margin.factor``) in the nested form of a config file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEPS = ("class_path", "init_args")


def nested(keys: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config file that sets these keys after `base`.

    Args:
        keys: dotted config keys; `init_args` may be left out, as on the command line.
        base: the config that the file is read after, whose classes the keys are of.
    """
    content: dict[str, Any] = {}
    # a searched class comes before its arguments, whatever their order in the space
    for key, value in sorted(keys.items(), key=lambda item: not item[0].endswith(".class_path")):
        node, known = content, base
        parts = _parts(key, base)
        for part in parts[:-1]:
            if part == "init_args" and "class_path" in known:
                node.setdefault("class_path", known["class_path"])
            known = _inside(known, part)
            node = node.setdefault(part, {})
        if parts[-1] != "class_path" and parts[-1] == "init_args" and "class_path" in known:
            node.setdefault("class_path", known["class_path"])
        node[parts[-1]] = value
    return content


def look_up(key: str, config: Mapping[str, Any]) -> Any:
    """The value of a dotted key in a whole config. Raises KeyError where it has none."""
    value: Any = config
    for part in _parts(key, config):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(key)
        value = value[part]
    return value


def _parts(key: str, config: Mapping[str, Any]) -> list[str]:
    """The key's parts, with `init_args` where the config has a class and the key does not say so."""
    known, parts = config, []
    for part in key.split("."):
        if "class_path" in known and part not in STEPS:
            parts.append("init_args")
            known = _inside(known, "init_args")
        parts.append(part)
        known = _inside(known, part)
    return parts


def _inside(config: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    inner = config.get(part)
    return inner if isinstance(inner, Mapping) else {}
