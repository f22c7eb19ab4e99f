"""Attention over a packed row (types.Tree), by scaled_dot_product_attention on what belongs together.

Registered with Transformers under a name, so that any architecture whose attention goes through its interface can be
run on a packed row. What the row is made of travels as a keyword argument of the model's forward; without it the same
name is Transformers' own sdpa, so the model takes padded rows as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from aplot_lightning.model.tree.by_comparison import Options, by_comparison, of_scored
from aplot_lightning.model.tree.flex import flex_attention_of, flex_works
from aplot_lightning.types import Batch, Tree

NAME = "aplot_tree"

# what models pass to attention that says nothing about it
HARMLESS = frozenset({"position_ids", "cache_position", "use_cache", "output_attentions", "is_causal", "is_training"})


class NotPackable(Exception):
    """An architecture's attention asks for something that is not computed on packed rows."""


class KeysAndValues(Exception):
    """Leaves a layer's forward in its attention, with the keys and values (1, heads, T, size) of all tokens."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key, self.value = key, value


class PackedRow:
    """What attention needs to know of one packed row, for one forward and its backward pass.

    Attributes:
        tree: how the row hangs together.
        end: (R,) int64, the scored tokens, for the last layer.
        position_ids: (1, T) int64.
    """

    def __init__(self, tree: Tree, end: Tensor, position_ids: Tensor) -> None:
        self.tree, self.end, self.position_ids = tree, end, position_ids
        self._masks: dict[Any, Any] = {}

    @classmethod
    def of(cls, batch: Batch) -> Self:
        assert batch.tree is not None
        assert batch.position_ids is not None
        return cls(batch.tree, batch.end, batch.position_ids)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, window: int | None, options: Options
    ) -> Tensor:
        """Attention of every token, (1, heads, T, size); arguments as in `by_comparison`."""
        if query.is_cuda and not options["dropout_p"] and flex_works(query, key):
            return flex_attention_of(self.tree, self.position_ids, self.masks, query, key, value, window, options)
        return by_comparison(self.tree, self.masks, query, key, value, window, options)

    def masks(self, key: Any, make: Callable[[], Any]) -> Any:
        """A mask by its key; the layers of one forward share them."""
        if key not in self._masks:
            self._masks[key] = make()
        return self._masks[key]


class KeysOnly(PackedRow):
    """Stops a layer once its keys and values are there."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, window: int | None, options: Options
    ) -> Tensor:
        raise KeysAndValues(key, value)


class ScoredOnly(PackedRow):
    """Attention of the scored tokens alone, to keys and values of all tokens that are `given`."""

    def __init__(self, row: PackedRow, given: KeysAndValues) -> None:
        super().__init__(row.tree, row.end, row.position_ids)
        self.given = given

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, window: int | None, options: Options
    ) -> Tensor:
        return of_scored(self.tree, query, self.given.key, self.given.value, window, options)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed: PackedRow | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of Transformers: on a packed row if `packed` is given, else its own sdpa.

    Args:
        module: the attention layer that calls.
        query, key, value: (1, heads, T, size), fewer heads in key and value with grouped queries.
        attention_mask: ignored on a packed row.
        dropout: probability at which attention weights are dropped.
        scaling: of the products of queries and keys.
        sliding_window: tokens that a token sees, itself among them.

    Raises:
        NotPackable: the layer passes something else (a soft cap, sinks, a bias), or looks ahead.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    for name, given in others.items():
        if given is not None and name not in HARMLESS:
            raise NotPackable(f"its attention takes {name}")
    if not (getattr(module, "is_causal", True) and others.get("is_causal") is not False):
        raise NotPackable("its attention looks ahead")
    options = {"dropout_p": dropout, "scale": scaling}
    return _attend_packed(packed, module, query, key, value, sliding_window, options), None


@torch.compiler.disable  # every row is another program: layers are compiled around it
def _attend_packed(
    packed: PackedRow,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    options: Options,
) -> Tensor:
    return packed.attend(module, query, key, value, window=window, options=options).transpose(1, 2).contiguous()


def register() -> None:
    """Makes the attention known to Transformers; on padded rows with the masks of its sdpa."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
