"""The same attention on a GPU: one FlexAttention kernel over the whole packed row, with a block mask of its tree."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aplot_lightning.data.batching import positions
from aplot_lightning.model.tree.by_comparison import by_comparison
from aplot_lightning.types import Tree

logger = logging.getLogger(__name__)


def flex_attention_of(
    tree: Tree,
    position_ids: Tensor,
    masks: Callable[[Any, Callable[[], Any]], Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    options: dict[str, Any],
) -> Tensor:
    """As `by_comparison`, without dropout; compiled on a GPU, uncompiled (slow) elsewhere."""
    tokens, device = query.shape[2], query.device
    make_mask, run = _kernels(compiled=query.is_cuda)

    def block_mask() -> Any:
        return make_mask(token_mask(tree, position_ids, window), None, None, tokens, tokens, device=device)

    groups = query.shape[1] // key.shape[1]
    mask = masks(("block", window), block_mask)
    result: Tensor = run(query, key, value, block_mask=mask, scale=options["scale"], enable_gqa=groups > 1)
    return result


def token_mask(tree: Tree, position_ids: Tensor, window: int | None) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
    """FlexAttention's mask_mod of a packed row: which token (query) sees which (key), by their places in the row."""
    owners = _owners(tree, pinned=position_ids.is_cuda)
    comparison, segment = (ids.to(position_ids.device, non_blocking=True) for ids in owners)
    position = position_ids[0]

    def seen(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        own = comparison[key] == comparison[query]
        line = (comparison[key] < 0) | (own & ((segment[key] == 0) | (segment[key] == segment[query])))
        visible = (key <= query) & line
        return visible if window is None else visible & (position[query] - position[key] < window)

    return seen


def _owners(tree: Tree, pinned: bool) -> tuple[Tensor, Tensor]:
    """Each token's comparison (-1 in the root) and segment (0 in a prefix), (T,) int32, ready to be copied over."""
    sizes, comparisons, segments = [tree.root], [-1], [0]
    for number, (prefix, suffixes) in enumerate(tree.comparisons):
        own = [prefix, *(suffixes[place] for place in Tree.row_order(suffixes))]
        sizes += own
        comparisons += [number] * len(own)
        segments += range(len(own))
    counts = torch.tensor(sizes)
    of_token = [torch.tensor(ids, dtype=torch.int32).repeat_interleave(counts) for ids in (comparisons, segments)]
    comparison, segment = (ids.pin_memory() if pinned else ids for ids in of_token)
    return comparison, segment


@functools.cache
def _kernels(compiled: bool) -> tuple[Any, Any]:
    """Makes a block mask, and attends by it."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if not compiled:
        return create_block_mask, flex_attention
    # uncompiled, both would hold a matrix of all pairs of tokens
    return torch.compile(create_block_mask, dynamic=True), torch.compile(flex_attention, dynamic=True)


def flex_works(query: Tensor, key: Tensor) -> bool:
    """Whether this GPU runs FlexAttention, forward and backward, at these sizes; tried once for each of them."""
    return _works(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3])


@functools.cache
def _works(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> bool:

    tree = Tree(9, ((150, (40, 30)), (0, (20, 7, 3))))
    position_ids = torch.from_numpy(positions(tree))[None].to(device)
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, count, position_ids.shape[1], size, generator=generator) for count in (heads, key_heads)]
    options = {"dropout_p": 0.0, "scale": None}
    results = []
    try:
        with torch.enable_grad(), torch.inference_mode(False):
            for by_flex in (True, False):
                query, key = (tensor.to(device, dtype).requires_grad_() for tensor in made)
                arguments = (query, key, key, 100, options)
                if by_flex:
                    output = flex_attention_of(tree, position_ids, lambda _, make: make(), *arguments)
                else:
                    output = by_comparison(tree, lambda _, make: make(), *arguments)
                results.append([output, *torch.autograd.grad(output.float().square().sum(), [query, key])])
        agree = all(
            (ours.float() - other.float()).norm() <= 0.02 * other.float().norm()
            for ours, other in zip(*results, strict=True)
        )
    except Exception as error:  # whatever a compiler or a card says
        logger.info("FlexAttention does not run here (%s): attention goes comparison by comparison", error)
        return False
    if not agree:
        logger.info("FlexAttention is not exact here: attention goes comparison by comparison")
    return agree
