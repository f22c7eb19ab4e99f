"""A digest of what a cell's result depends on: its merged config, its seed, and the content of the files it names.

It merges the YAML files without `fit`'s defaults, and leaves out the location of the checkout and the version of the
code: a run that is done stays done when one of these changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from aplot_lightning.data.sources import open_source
from aplot_lightning.tuning.grid import Cell
from aplot_lightning.tuning.yaml_files import read_yaml

REPLACED = ("data.ood", "data.ood_validation")  # a later config's replaces an earlier one's as a whole
# how a run is carried out, and not what comes of it
WITHOUT = ("run_dir", "overwrite", "ckpt_path", "data.cache_dir", "data.num_workers", "data.preparation_workers")
SAMPLED = 1 << 28  # bytes above which a model's file is read in places only
MODEL_KEYS = ("model.backbone", "model.init_from", "init_from")


def cell_digest(cell: Cell) -> str:
    """Hex digest of all that decides a cell's result.

    Raises:
        UserError: a config that is no YAML, or a data file that there is not.
    """
    config = merged_config(cell)
    for key in WITHOUT:
        _pop(config, key)
    data = config.get("data")
    if isinstance(data, dict):
        for name in ("train", "id"):
            if data.get(name) is not None:
                data[name] = _content(data[name], f"data.{name}")
        for name in ("ood", "ood_validation"):
            for own, value in (data.get(name) or {}).items():
                data[name][own] = _content(value, f"data.{name}.{own}")
    for key in MODEL_KEYS:
        value = _get(config, key)
        if isinstance(value, str) and Path(value).expanduser().exists():
            _set(config, key, model_digest(Path(value).expanduser().resolve()))
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def merged_config(cell: Cell) -> dict[str, Any]:
    """A cell's configs and overrides as one, later ones over earlier ones, mappings merged.

    `fit` drops arguments that a later class path does not take; they stay here, so that a difference is never missed.
    """
    config: dict[str, Any] = {}
    for path in cell.configs:
        merge(config, _parsed(path, path.stat().st_mtime_ns))
    for key, value in cell.overrides.items():
        _set(config, key, deepcopy(value))
    config["seed_everything"] = cell.seed
    return config


@lru_cache
def _parsed(path: Path, changed: int) -> dict[str, Any]:
    """A config file's content, which cells share, as long as it does not change."""
    return read_yaml(path, "--config")


def merge(config: dict[str, Any], other: Mapping[str, Any], prefix: str = "") -> None:
    """Merges another config into one, in place."""
    for key, value in other.items():
        whole = f"{prefix}{key}" in REPLACED
        if isinstance(value, Mapping) and isinstance(config.get(key), dict) and not whole:
            merge(config[key], value, f"{prefix}{key}.")
        else:
            config[key] = deepcopy(value)


def _content(value: Any, key: str) -> Any:
    """A data source as a config names it, with a digest of the content in the place of each path.

    Raises:
        UserError: no such file, or one that cannot be used, under the config key.
    """
    if isinstance(value, list):
        return [_content(item, f"{key}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, Mapping) and "class_path" in value:
        return value  # made of its arguments
    source = open_source(value, key)
    path = getattr(source, "source", source).path  # a renamed source has its own inside
    if path is None:
        return value
    digest = _data_digest(path.resolve())
    return {**value, "path": digest} if isinstance(value, Mapping) else digest


@lru_cache
def _data_digest(path: Path) -> str:
    state = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            state.update(f"{file.name}\n".encode())
            with file.open("rb") as opened:
                state.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{state.hexdigest()}"


@lru_cache
def model_digest(path: Path) -> str:
    """A digest of a model's folder or file; of large files, their size and a megabyte in each of 64 places."""
    state = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if not _is_hidden(file, path)) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            continue
        size = file.stat().st_size
        state.update(f"{file.relative_to(path) if path.is_dir() else ''} {size}\n".encode())
        with file.open("rb") as opened:
            if size <= SAMPLED:
                state.update(hashlib.file_digest(opened, "sha256").digest())
                continue
            for place in range(64):
                opened.seek(max(0, size - (1 << 20)) * place // 63)
                state.update(opened.read(1 << 20))
    return f"sha256:{state.hexdigest()}"


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *path, name = key.split(".")
    for part in path:
        inner = config.get(part)
        config[part] = inner if isinstance(inner, dict) else {}
        config = config[part]
    config[name] = value


def _pop(config: dict[str, Any], key: str) -> None:
    *path, name = key.split(".")
    inner = _get(config, ".".join(path)) if path else config
    if isinstance(inner, dict):
        inner.pop(name, None)
