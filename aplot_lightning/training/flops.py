"""What a step computes, in floating-point operations, and what the device could do in the same time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from aplot_lightning.types import Batch, Tree

if TYPE_CHECKING:
    import lightning as L

    from aplot_lightning.model.backbone import Backbone


def training_flops(backbone: Backbone, batches: Sequence[Batch]) -> float:
    """Operations of one forward and one backward pass over some micro-batches, by the tokens that are really computed.

    Six for each token and weight of a matrix (PaLM, 2204.02311, appendix B) and twelve for each layer, pair of tokens
    that see one another, and channel; a third of it is the forward pass. A frozen weight beside adapters has no
    gradient of its own, which leaves four, and a wholly frozen backbone has no backward pass. What is computed
    twice (the second pass of an exact objective, gradient checkpointing) counts once, and padding counts as computed.
    Mixtures of experts are counted as if all were used.

    Args:
        backbone: of a dense encoder or decoder.
        batches: padded or packed; cached ones count nothing.
    """
    config = backbone.config.get_text_config()
    channels = getattr(config, "hidden_size", 0) * getattr(config, "num_hidden_layers", 0)
    tokens = sum(batch.computed_tokens for batch in batches)
    weights, trained = backbone.matrix_weights, backbone.trained_matrix_weights
    of_a_token = 4.0 * weights + 2.0 * trained if trained else 2.0 * weights
    return of_a_token * tokens + (12.0 if trained else 4.0) * channels * sum(map(seen_pairs, batches))


def seen_pairs(batch: Batch) -> int:
    """Pairs of a token and one that it sees, itself among them; padded rows count half of their square."""
    if batch.tree is None:
        rows, length = batch.input_ids.shape
        return rows * _causal(length)
    pairs = _causal(batch.tree.root)
    for prefix, suffixes in batch.tree.comparisons:
        longest, *others = (suffixes[place] for place in Tree.row_order(suffixes))
        own = prefix + longest
        pairs += own * batch.tree.root + _causal(own)
        pairs += sum(other * (batch.tree.root + prefix) + _causal(other) for other in others)
    return pairs


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def peak_flops(trainer: L.Trainer, module: L.LightningModule) -> float | None:
    """Operations a second that the device could do at most in the run's precision; None where that is not known."""
    from lightning.fabric.utilities.throughput import get_available_flops

    precision = str(trainer.precision)
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16 if precision.startswith("16") else None
    if dtype is None:
        dtype = next(module.parameters()).dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unknown device is no news: its share is left out
        return get_available_flops(module.device, dtype)
