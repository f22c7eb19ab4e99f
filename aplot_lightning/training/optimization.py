"""The optimizer with its two groups of parameters, and the learning rate over a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from aplot_lightning.errors import UserError


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    make: Callable[[Any], Optimizer] | None,
    learning_rate: float,
    weight_decay: float,
    scaled: bool,
) -> Optimizer:
    """An optimizer of two groups: weight decay is on matrices only, not on biases and norms.

    Args:
        parameters: those that may be trained; frozen ones are left out.
        make: makes it of the groups, which say learning rate and weight decay; None for fused AdamW.
        learning_rate: the highest of the run.
        weight_decay: of the matrices.
        scaled: whether gradients come from a gradient scaler (16-mixed). They are checked and clipped between
            unscaling and step, so the optimizer must not unscale them itself, as fused ones do.

    Raises:
        UserError: an optimizer that does not take one step a batch, or not these groups or scaled gradients, or that
            was given another learning rate or weight decay, which the groups would overrule.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay, "lr": learning_rate},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "lr": learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    if make is None:
        return torch.optim.AdamW(groups, fused=not scaled)
    try:
        optimizer = make(groups)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optimizer: it could not be made: {' '.join(str(error).split())}") from error
    _check_given(optimizer, "lr", "model.learning_rate", learning_rate)
    _check_given(optimizer, "weight_decay", "model.weight_decay", weight_decay)
    if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UserError(
            "model.optimizer: a fused optimizer unscales gradients inside its step, after they are clipped; set fused "
            "to false, or trainer.precision to bf16-mixed"
        )
    return optimizer


def _check_given(optimizer: Optimizer, name: str, key: str, used: float) -> None:
    """Raises UserError where the optimizer was given a value that is neither its class's own default nor the used one.

    A value that equals the default cannot be told from none: jsonargparse fills it in.
    """
    given = optimizer.defaults.get(name)
    parameter = inspect.signature(type(optimizer)).parameters.get(name)
    if given is None or parameter is None or float(given) in (parameter.default, used):
        return
    raise UserError(
        f"model.optimizer: its {name} {float(given):g} is not used, {key} ({used:g}) is: set {key} and leave {name} out"
    )


def learning_rate_share(step: int, total: float, warmup_share: float) -> float:
    """Linear warm-up, then cosine to zero at the run's last optimizer step; a share of the highest learning rate."""
    warmup = warmup_share * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))


def number_by_model(state: dict[str, Any], optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """An optimizer's state dict whose parameters are numbered as in the model.

    PyTorch numbers them in the order of the optimizer's groups. FSDP2's loader takes numbers for places among
    the model's parameters, and PyTorch's goes by the order in the groups, so this form suits both.

    Args:
        state: from `optimizer.state_dict()`.
        optimizer: which it is of.
        parameters: the whole model's, in its order.
    """
    place = {id(parameter): number for number, parameter in enumerate(parameters)}
    numbers = [
        (old, place[id(parameter)])
        for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
        for parameter, old in zip(group["params"], saved["params"], strict=True)
    ]
    new = dict(numbers)
    groups = [{**group, "params": [new[old] for old in group["params"]]} for group in state["param_groups"]]
    return {**state, "state": {new[old]: value for old, value in state["state"].items()}, "param_groups": groups}
