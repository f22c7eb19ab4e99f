"""`average`: one model whose weights are the mean of several runs' weights (WARM, 2401.12187).

Heavy imports wait until the cheap mistakes (a missing run, an existing output) are found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aplot_lightning.errors import UserError
from aplot_lightning.model.locate import locate_model

State = Mapping[str, Any]  # names to tensors; torch is not imported for a type, which jsonargparse would look up

# of a config or tokenizer, what changes neither the architecture nor how a text is read
TRAINING_ONLY = ("dropout", "pdrop", "layerdrop", "dtype", "attn_implementation", "use_cache", "transformers_version")
METADATA = ("architectures", "name_or_path", "is_local", "local_files_only", "model_max_length")
SAME = "only runs of one architecture, tokenizer and head can be averaged"


def main(models: list[str], output: str, overwrite: bool = False) -> None:
    """Averages the weights of several runs of one architecture into one model.

    The model costs what one run costs and is read like a run: by score, as --init_from of a fit, and by
    RewardModel.from_pretrained. Weights are averaged in float64 and stored in the precision of the first run's;
    max_length and dropout are the first run's too.

    When to use it: runs that differ by seed, data order or settings, all from the same pretrained backbone (and
    best from the same head: --init_from). Weights of runs from different random starts do not average.

    Args:
        models: Two or more runs (their best checkpoints) or checkpoint files, as [RUN_A,RUN_B].
        output: A checkpoint file to write (NAME.ckpt), or a folder, in which checkpoints/best.ckpt is written.
        overwrite: Replace an output that exists.
    """
    sources = _locate(models)
    target = _target(output, sources, overwrite)

    from aplot_lightning.model.checkpoint import read_checkpoint
    from aplot_lightning.model.lora import merged

    # the mean of two products is not the product of the means: adapters are merged first
    read = [merged(*read_checkpoint(source, "--models"), source) for source in sources]
    description, state = read[0]
    for name, (other, other_state) in zip(models[1:], read[1:], strict=True):
        difference = _difference(description, other) or _state_difference(state, other_state)
        if difference:
            raise UserError(f"--models: {models[0]} and {name} differ in {difference}; {SAME}")
    _write(target, description, average_weights([weights for _, weights in read]))
    print(f"averaged {len(models)} models: {target}")


def average_weights(states: Sequence[State]) -> dict[str, Any]:
    """The mean of several models' weights.

    Args:
        states: their state dicts, of the same names and shapes.

    Returns:
        Each floating-point tensor's mean, summed in float64 and rounded once to the first's dtype; others as they are
        in the first.
    """
    average = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            average[name] = first.clone()
            continue
        total = first.double()
        for state in states[1:]:
            total += state[name].double()
        average[name] = (total / len(states)).to(first.dtype)
    return average


def _locate(models: Sequence[str]) -> list[str]:
    """The checkpoint file of each model."""
    if len(models) < 2:
        raise UserError(f"--models names {len(models)} of the two or more models that an average needs: [RUN_A,RUN_B]")
    places = [locate_model(name, "--models") for name in models]
    for place in places:
        if place.kind != "checkpoint":
            raise UserError(f"--models: {place.name!r} is no run and no checkpoint file; name what a fit has written")
    return [place.source for place in places]


def _target(output: str, sources: Sequence[str], overwrite: bool) -> Path:
    """The file to write; UserError where it may not be written."""
    path = Path(output)
    target = path if path.suffix == ".ckpt" else path / "checkpoints" / "best.ckpt"
    if target.is_dir() or (path.exists() and target != path and not path.is_dir()):
        raise UserError(f"--output: {output} is in the way: name a folder, or a file that ends in .ckpt")
    if any(target.resolve() == Path(source).resolve() for source in sources):
        raise UserError(f"--output: {target} is one of the models that are averaged: name another")
    if target.exists() and not overwrite:
        raise UserError(f"--output: {target} exists already: name another or add --overwrite true")
    return target


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """In what two models' descriptions differ, so that their weights do not mean the same; None where in nothing."""
    configs = (_bare(one.get("config")), _bare(other.get("config")))
    if configs[0] != configs[1]:
        keys = sorted(key for key in {**configs[0], **configs[1]} if configs[0].get(key) != configs[1].get(key))
        return f"their architecture ({', '.join(keys)})"
    if _read_files(one.get("tokenizer")) != _read_files(other.get("tokenizer")):
        return "their tokenizer"
    compared = sorted({*one, *other} - {"format", "config", "tokenizer", "dtype", "max_length"})
    return next((f"their {key.replace('_', ' ')}" for key in compared if one.get(key) != other.get(key)), None)


def _bare(values: Any) -> Any:
    """Nested settings without those that change neither the architecture nor how a text is read."""
    if isinstance(values, Mapping):
        return {
            key: _bare(value)
            for key, value in values.items()
            if key not in METADATA and not any(word in key for word in TRAINING_ONLY)
        }
    return [_bare(value) for value in values] if isinstance(values, list) else values


def _read_files(files: Any) -> Any:
    """A tokenizer's files; tokenizer_config.json is compared by what it says and not by its layout."""
    settings = "tokenizer_config.json"
    if not isinstance(files, Mapping) or settings not in files:
        return files
    return {**files, settings: _bare(json.loads(files[settings]))}


def _state_difference(one: State, other: State) -> str | None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (one, other)]
    return None if shapes[0] == shapes[1] else "the names or shapes of their weights"


def _write(target: Path, description: Mapping[str, Any], state: State) -> None:
    """Writes a checkpoint beside its place and moves it there when it is whole."""
    import torch

    from aplot_lightning.model.checkpoint import PREFIX

    content = {
        "state_dict": {PREFIX + name: tensor for name, tensor in state.items()},
        "reward_model": dict(description),
    }
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {target} could not be written: {error.strerror}") from error
    try:
        torch.save(content, part)
        part.replace(target)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError on a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"--output: {target} could not be written: {reason}") from error
    finally:
        part.unlink(missing_ok=True)
