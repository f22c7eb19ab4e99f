"""How rows are laid out for scoring: batches by number or by tokens, and evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from aplot_lightning.data.batching import pad_rows
from aplot_lightning.types import Batch, Pairs


def cut_by_size(lengths: Sequence[int], batch_size: int, batch_tokens: int | None) -> Iterator[range]:
    """Cuts rows into consecutive batches.

    Args:
        lengths: tokens of every row, falling.
        batch_size: rows in one batch.
        batch_tokens: in its place, padded tokens in one batch; a batch always holds at least one row.
    """
    start = 0
    while start < len(lengths):
        size = batch_size if batch_tokens is None else batch_tokens // lengths[start]
        stop = min(len(lengths), start + max(1, size))
        yield range(start, stop)
        start = stop


def unpaired_batch(rows: Sequence[np.ndarray], pad_id: int) -> Batch:
    """Rows of token ids as a batch without pairs."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(*pad_rows(rows, pad_id), Pairs(nothing, nothing))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module goes back to its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
