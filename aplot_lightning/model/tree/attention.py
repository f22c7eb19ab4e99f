"""Attention over a packed row (types.Tree), by scaled_dot_product_attention on what belongs together.

Registered with Transformers under a name, so that any architecture whose attention goes through its interface can be
run on a packed row. What the row is made of travels as a keyword argument of the model's forward; without it the same
name is Transformers' own sdpa, so the model takes padded rows as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from aplot_lightning.model.tree.flex import flex_attention_of, flex_works
from aplot_lightning.types import Batch, Tree

NAME = "aplot_tree"
Options = dict[str, Any]

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


def by_comparison(
    tree: Tree,
    masks: Callable[[Any, Callable[[], Any]], Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    options: Options,
) -> Tensor:
    """Attention of every token of a packed row, (1, heads, T, size), one call for each prefix and suffix.

    Args:
        tree: how the row hangs together.
        masks: keeps the masks that are made here.
        query, key, value: (1, heads, T, size).
        window: tokens that a token sees, itself among them; None for all.
        options: ``dropout_p`` and ``scale`` of scaled_dot_product_attention.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries, keys = query.shape[2], key.shape[2]
        if queries == keys and (window is None or keys <= window):
            return _attend(query, key, value, None, queries > 1, options)
        mask = masks((queries, keys, window), lambda: _lower_right(queries, keys, window, query.device))
        return _attend(query, key, value, mask, False, options)

    outputs: list[Tensor] = []
    roots, rest = _roots(tree, (query, key, value))
    if tree.root:
        outputs.append(attend(*roots))
    for (prefix, suffixes), part in zip(tree.comparisons, rest, strict=True):
        order = [suffixes[place] for place in Tree.row_order(suffixes)]
        trunks, *tails = _split(part, [prefix + order[0], *order[1:]])
        outputs.append(_behind_root(attend, tree.root, roots, trunks))
        if tails:
            _, prefix_key, prefix_value = (tensor[:, :, :prefix] for tensor in trunks)
            for tail_query, tail_key, tail_value in tails:
                keys = torch.cat([roots[1], prefix_key, tail_key], 2)
                values = torch.cat([roots[2], prefix_value, tail_value], 2)
                outputs.append(attend(tail_query, keys, values))
    return torch.cat(outputs, 2)


def of_scored(tree: Tree, query: Tensor, key: Tensor, value: Tensor, window: int | None, options: Options) -> Tensor:
    """Attention of the R scored tokens, (1, heads, R, size), in the order of the responses.

    Each sees its whole conversation: no mask is needed, a window only cuts off the beginning.

    Args:
        tree: how the row hangs together.
        query: (1, heads, R, size).
        key, value: (1, heads, T, size), of all tokens.
        window, options: as in `by_comparison`.
    """
    queries = iter(query.split(1, 2))
    outputs: list[Tensor] = []
    roots, rest = _roots(tree, (key, value))
    for (prefix, suffixes), part in zip(tree.comparisons, rest, strict=True):
        order = Tree.row_order(suffixes)
        trunk, *tails = _split(part, [prefix, *(suffixes[place] for place in order)])
        placed = dict(zip(order, tails, strict=True))
        for place in range(len(suffixes)):
            keys, values = (torch.cat(parts, 2) for parts in zip(roots, trunk, placed[place], strict=True))
            if window is not None and keys.shape[2] > window:
                keys, values = keys[:, :, -window:], values[:, :, -window:]
            outputs.append(_attend(next(queries), keys, values, None, False, options))
    return torch.cat(outputs, 2)


def _behind_root(attend: Callable[..., Tensor], root: int, roots: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Attention of a prefix with its longest suffix, which come behind the root."""
    own = parts[0].shape[2]
    if not root:
        return attend(*parts)
    keys, values = (torch.cat(both, 2) for both in zip(roots[1:], parts[1:], strict=True))
    if root > own:
        return attend(parts[0], keys, values)
    # the root's queries once more: a causal call over all is faster than a mask
    return attend(torch.cat([roots[0], parts[0]], 2), keys, values)[:, :, root:]


def _roots(tree: Tree, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The root's share of each tensor, and each comparison's."""
    sizes = [tree.root, *(prefix + sum(suffixes) for prefix, suffixes in tree.comparisons)]
    roots, *rest = _split(tensors, sizes)
    return roots, rest


def _split(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """Every part of every tensor: one split each, since the backward of a slice makes a gradient of full size."""
    return [list(parts) for parts in zip(*(tensor.split(list(sizes), 2) for tensor in tensors), strict=True)]


def _lower_right(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) bool: the queries are the last tokens of the keys, and see back as far as the window."""
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, options: Options) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and mask is not None and query.device.type != "cpu":
        # with a mask, fast kernels elsewhere know no grouped queries
        key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
        groups = 1
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=groups > 1, **options
    )
