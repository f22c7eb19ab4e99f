"""Finds mistyped keys of `model`, `data` and `trainer` before PyTorch is imported, so that they are answered at once.

What a class accepts is read from its source with `ast`, without importing it. Everything that cannot be read this way
(classes of other packages, ``**options``, values) is left to the full parser, which checks the whole command.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aplot_lightning.argument_errors import CLASS_PATH_HINT
from aplot_lightning.errors import UserError

SECTIONS = {
    "model": "aplot_lightning.training.module.RewardModelingModule",
    "data": "aplot_lightning.data.datamodule.PreferenceDataModule",
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
}
GENERAL = {"help", "class_path", "init_args", "dict_kwargs"}  # jsonargparse's own keys
OURS = re.compile(r"aplot_lightning(\.\w+)+")


def check_keys(arguments: Sequence[str], configs: Iterable[Mapping[str, Any]]) -> None:
    """Checks the keys of a command line and of its config files, in the order in which they are given.

    Raises:
        UserError: a section has no such key, a class of this package does not accept an argument, or a class path leads
            nowhere. The message names the key and the closest valid one.
    """
    last: dict[tuple[str, str], Any] = {}  # a later config or flag may replace a wrong value, never a wrong key
    for config in configs:
        for section in SECTIONS.keys() & config.keys():
            for key, value in config[section].items() if isinstance(config[section], dict) else ():
                if isinstance(key, str) and "." not in key:
                    _check_key(section, key.rstrip("+"), "'{}' is not a known key")
                    last[section, key] = value
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        section, *keys = name.removeprefix("--").rstrip("+").split(".")
        if name.startswith("--") and section in SECTIONS and keys:
            _check_key(section, keys[0], "unrecognized argument --{}")
            replacement = value if equals else "".join(arguments[index + 1 : index + 2])
            last[section, keys[0]] = replacement if len(keys) == 1 else None
    for (section, key), value in last.items():
        annotation = (_accepted(SECTIONS[section]) or {}).get(key, "str")
        if isinstance(value, str) and OURS.fullmatch(value) and "str" not in annotation:
            value = {"class_path": value}
        _check_value(f"{section}.{key}", value)


def _check_key(section: str, key: str, message: str) -> None:
    accepted = _accepted(SECTIONS[section])
    if accepted is not None and key not in {*accepted, *GENERAL}:
        raise UserError(f"{message.format(f'{section}.{key}')}; {_hint(key, accepted, f'{section}.', 'see --help')}")


def _hint(name: object, valid: Iterable[str], prefix: str = "", otherwise: str = "") -> str:
    close = get_close_matches(str(name), valid, 1)
    return f"did you mean {prefix}{close[0]}?" if close else otherwise


def _check_value(key: str, value: Any) -> None:
    """Checks the class paths in a value, and the names of the arguments of this package's classes."""
    for item in value if isinstance(value, list) else ():
        _check_value(key, item)
    if not isinstance(value, dict):
        return
    path, options = value.get("class_path"), value.get("init_args")
    if isinstance(path, str) and re.fullmatch(r"[A-Za-z]\w*(\.\w+)+", path) and not find_spec(path.split(".")[0]):
        raise UserError(f"{key}: No module named {path.split('.')[0]!r}; {CLASS_PATH_HINT}")
    if isinstance(path, str) and OURS.fullmatch(path):
        accepted = _accepted(path, key)
        for name in options if isinstance(options, dict) else ():
            if accepted is not None and name not in accepted:
                fault = f"{key}: Option {name!r} is not accepted by {path.rpartition('.')[2]}"
                raise UserError(f"{fault}, only {', '.join(accepted)}; {_hint(name, accepted)}".removesuffix("; "))
    for name, item in (options if isinstance(options, dict) else value).items():
        _check_value(f"{key}.{name}", item)


@cache
def _accepted(class_path: str, key: str | None = None) -> dict[str, str] | None:
    """The arguments of a class's constructor with their annotations, or None if they cannot be read.

    Raises UserError if the class does not exist and `key` says where it was named.
    """
    module, _, name = class_path.rpartition(".")
    tree = _parse(module)
    if tree is None:
        if key is not None:
            raise UserError(f"{key}: No module named {module!r}; {CLASS_PATH_HINT}")
        return None
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _accepted(f"{node.module}.{alias.name}")
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _constructor(node, module)
    known = {word for node in ast.walk(tree) for word in _bound(node)}
    if key is not None and name not in known and not known & {"__getattr__", "*"}:
        hint = _hint(name, sorted(known), f"{module}.", CLASS_PATH_HINT)
        raise UserError(f"{key}: module {module!r} has no attribute {name!r}; {hint}")
    return None


def _constructor(node: ast.ClassDef, module: str) -> dict[str, str] | None:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            arguments = method.args
            if arguments.vararg or arguments.kwarg:
                return None
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs][1:]
            return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in every}
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != "ABC"]
    return _accepted(f"{module}.{bases[0]}") if len(bases) == 1 and not node.decorator_list else None


def _bound(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    return [node.id] if isinstance(node, ast.Name) else []


@cache
def _parse(module: str) -> ast.Module | None:
    """The source of a module, found without importing it; only its top package is looked up."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_bytes()) if file.is_file() else None
