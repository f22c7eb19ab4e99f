"""The last layer of a decoder, run for the scored tokens alone.

Of the other tokens only their keys and values are needed there. The layer's own forward is run twice: on all tokens as
far as its attention, which stops it once keys and values are there, then on the scored tokens with those keys and
values. So nothing needs to be known of an architecture, and what wraps its projections stays in force.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from aplot_lightning.model.tree.attention import KeysAndValues, KeysOnly, PackedRow, ScoredOnly


def score_only(layer: nn.Module) -> None:
    """Makes `layer` give the R scored tokens, (1, R, d), where it is called on a packed row."""
    # on the instance: its class, its place in the model and the names of its weights stay what they are
    layer.forward = functools.partial(_forward, layer)


def score_all(layer: nn.Module) -> None:
    """Undoes `score_only`."""
    layer.__dict__.pop("forward", None)


@torch.compiler.disable(recursive=False)  # the layer's own forward is compiled, this around it need not be
def _forward(layer: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
    row: PackedRow | None = options.get("packed")
    run = functools.partial(type(layer).forward, layer)
    if row is None:
        return run(hidden_states, *arguments, **options)
    checkpointed = getattr(layer, "gradient_checkpointing", False)
    # what this layer keeps for the backward pass is less than any other layer computes again
    layer.gradient_checkpointing = False
    try:
        given = _keys_and_values(run, row, hidden_states, *arguments, **options)
        tokens = hidden_states.shape[1]
        scored = [_select(value, row.end, tokens) for value in (hidden_states, *arguments)]
        chosen = {name: _select(value, row.end, tokens) for name, value in options.items()}
        return run(*scored, **{**chosen, "packed": ScoredOnly(row, given)})
    finally:
        layer.gradient_checkpointing = checkpointed


def _keys_and_values(run: Any, row: PackedRow, *arguments: Any, **options: Any) -> KeysAndValues:
    try:
        run(*arguments, **{**options, "packed": KeysOnly(row.tree, row.end, row.position_ids)})
    except KeysAndValues as found:
        return found.with_traceback(None)
    raise RuntimeError("the last layer did not come to its attention")


def _select(value: Any, end: Tensor, tokens: int) -> Any:
    """What belongs to the scored tokens, of a layer's argument that has a place for every token, (1, T[, d])."""
    if isinstance(value, tuple):
        return tuple(_select(part, end, tokens) for part in value)
    if isinstance(value, Tensor) and value.ndim in (2, 3) and value.shape[1] == tokens:
        return value.index_select(1, end)
    return value
