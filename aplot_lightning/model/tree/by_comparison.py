"""Attention over a packed row, one comparison after another, by scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from aplot_lightning.types import Tree

Options = dict[str, Any]


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
