"""Where a named model lives: a run, a checkpoint file, a folder, a built-in, or the model hub.

Imports nothing heavy, so that a command can refuse a wrong path before torch is loaded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aplot_lightning.errors import UserError

ASSETS = Path(__file__).parent / "assets"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class ModelPlace:
    """What a model's name stands for.

    Attributes:
        name: the name as it was given.
        kind: ``checkpoint`` (one of our own files), ``folder`` (Hugging Face layout with weights), ``architecture``
            (a folder with config.json and a tokenizer but no weights), or ``hub`` (nothing on this disk yet).
        source: the checkpoint file, the folder, or the hub name.
    """

    name: str
    kind: Literal["checkpoint", "folder", "architecture", "hub"]
    source: str


def built_in_names() -> list[str]:
    """Names of the architectures that come with the package."""
    return sorted(folder.name for folder in ASSETS.glob("*") if (folder / "config.json").is_file())


def locate_model(name: str, key: str) -> ModelPlace:
    """Finds out what `name` stands for, without reading it.

    Args:
        name: a built-in name, a run directory, a checkpoint file, a folder, or a hub name; in this order.
        key: what the user set, for messages (``model.backbone``, ``--model``).

    Raises:
        UserError: nothing of that name is here and it cannot be a hub name, or the folder holds no model.
    """
    if name in built_in_names():
        return ModelPlace(name, "architecture", str(ASSETS / name))
    if not name:
        raise UserError(f"{key}: no model is named; {_expected()}")
    path = Path(name).expanduser()
    if path.is_dir():
        return _locate_in_folder(name, path, key)
    if path.is_file():
        return ModelPlace(name, "checkpoint", str(path))
    if path.suffix == ".ckpt" or not HUB_NAME.fullmatch(name):
        raise UserError(f"{key}: {name!r} does not exist; {_expected()}")
    return ModelPlace(name, "hub", name)


def _locate_in_folder(name: str, folder: Path, key: str) -> ModelPlace:
    for file in ("checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        if (folder / file).is_file():
            return ModelPlace(name, "checkpoint", str(folder / file))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{key}: the folder {name!r} holds no model: neither checkpoints/best.ckpt nor checkpoints/last.ckpt "
            "(a run) nor config.json (a Hugging Face model)"
        )
    _check_inside(name, folder, key)
    if any((folder / file).is_file() for file in WEIGHTS):
        return ModelPlace(name, "folder", str(folder))
    pickled = next((file for file in PICKLED_WEIGHTS if (folder / file).is_file()), None)
    if pickled is not None:
        raise UserError(
            f"{key}: {name!r} holds its weights as {pickled}, a pickle, which can run code when it is read; "
            "save the model again as model.safetensors"
        )
    return ModelPlace(name, "architecture", str(folder))


def _check_inside(name: str, folder: Path, key: str) -> None:
    """Raises UserError where a file of the folder sends its reader to another place, where Transformers would go."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{key}: {name!r} is an adapter, which names its base model by a path; merge it into its base")
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{key}: {index} is no index of weights: copy the model again") from error
    outside = sorted(str(file) for file in files if not isinstance(file, str) or Path(file).name != file)
    if outside:
        raise UserError(f"{key}: {index} names weights outside its folder ({outside[0]}), which are not read")


def not_on_hub(name: str, key: str, reason: str) -> UserError:
    """The mistake of naming a model that is neither here nor on the hub (or the hub cannot be reached)."""
    return UserError(f"{key}: {name!r} is not on this disk and the model hub did not give it ({reason}); {_expected()}")


def _expected() -> str:
    built_in = "".join(f", or {name}" for name in built_in_names())
    return (
        "give a run directory, a checkpoint file, a folder with config.json and model.safetensors, a hub name"
        f"{built_in}"
    )
