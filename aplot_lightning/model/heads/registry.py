"""Making a head for a backbone, and making it again from a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aplot_lightning.errors import UserError
from aplot_lightning.model.heads.bottleneck import Bottleneck
from aplot_lightning.model.heads.ensemble import Ensemble
from aplot_lightning.model.heads.head import Head
from aplot_lightning.model.heads.linear import Linear
from aplot_lightning.model.heads.mlp import MLP
from aplot_lightning.model.heads.positive import WithConfidence, WithVariance
from aplot_lightning.model.heads.quality_and_length import QualityAndLength

# what a checkpoint may name: a word, never a class path, so that a file cannot say what code to run
HEADS: dict[str, type[Head]] = {
    head.kind: head for head in (Linear, MLP, WithVariance, WithConfidence, QualityAndLength, Ensemble, Bottleneck)
}


def make_head(
    head: Head | None,
    in_features: int,
    bias: bool,
    weights: Mapping[str, Tensor] | None,
    *,
    deviation: float,
    seed: int | None,
) -> Head:
    """A copy of `head` with layers, and with the weights that a model came with or fresh ones.

    Args:
        head: what was asked for, without layers; None for a linear one.
        in_features: size of the embedding.
        bias: whether rewards have a constant term.
        weights: the state of the model's own linear head; None for fresh weights. Another kind of head starts fresh.
        deviation: of fresh weights.
        seed: draws fresh weights from a generator of their own; None from torch's global one.

    Raises:
        UserError: a head that a checkpoint could not name.
    """
    made = Linear() if head is None else copy.deepcopy(head)
    if HEADS.get(getattr(made, "kind", "")) is not type(made):
        raise UserError(
            f"model.head: {type(made).__name__} is not registered in aplot_lightning/model/heads/registry.py, so that "
            f"no checkpoint of it could be read; choose one of {', '.join(kind.__name__ for kind in HEADS.values())}"
        )
    made.build(in_features, bias)
    if weights is not None and isinstance(made, Linear):
        made.load_state_dict(weights)
    else:
        made.reset(deviation, None if seed is None else torch.Generator().manual_seed(seed))
    return made


def build_head(description: Mapping[str, Any]) -> Head:
    """The head that `describe` described, with weights still to be loaded.

    Raises:
        ValueError, TypeError, KeyError: an unknown kind, or not the options of that kind.
    """
    options = dict(description)
    kind, in_features, bias = (options.pop(name) for name in ("kind", "in_features", "bias"))
    if kind not in HEADS:
        raise ValueError(f"unknown kind of head {kind!r}: this version knows {', '.join(HEADS)}")
    head = HEADS[kind](**options)
    head.build(int(in_features), bool(bias))
    return head
