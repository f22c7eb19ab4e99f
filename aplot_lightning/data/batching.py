"""How an optimizer batch is cut into micro-batches and laid out as tensors.

Only inside an optimizer batch are comparisons sorted by length, to save padding: which ones meet in it is random
(plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.types import Batch, Pairs


def rank_micro_batches(
    comparisons: np.ndarray, lengths: np.ndarray, pair_counts: np.ndarray, micro_batch_size: int, rank: int, world: int
) -> list[np.ndarray]:
    """This rank's micro-batches of one optimizer batch, longest first.

    Every rank gets the same number of them (a sharded model runs in step), some perhaps empty. Ranks are dealt the
    length-sorted comparisons in turn, so that their loads are alike.

    Args:
        comparisons: (c,) int64, the optimizer batch.
        lengths: (C,) tokens of every comparison's longest conversation.
        pair_counts: (C,) pairs of every comparison.
        micro_batch_size: pairs in one forward on one rank.
        rank: this rank.
        world: number of ranks.
    """
    order = comparisons[np.argsort(-lengths[comparisons], kind="stable")]
    shares = [order[other::world] for other in range(world)]
    parts = max(1, max(-(-int(pair_counts[share].sum()) // micro_batch_size) for share in shares))
    return np.array_split(shares[rank], parts)


def pad_rows(rows: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of token ids padded on the right: input_ids and attention_mask (R, length), end (R,), all int64."""
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    input_ids = np.full((len(rows), int(lengths.max())), pad_id, dtype=np.int64)
    mask = np.arange(input_ids.shape[1])[None, :] < lengths[:, None]
    input_ids[mask] = np.concatenate(rows)
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(lengths - 1)


def collate(encoded: EncodedComparisons, comparisons: np.ndarray, pad_id: int) -> Batch:
    """One micro-batch of `comparisons`. An empty one holds the rows of comparison 0 and no pairs."""
    rows: list[np.ndarray] = []
    chosen: list[np.ndarray] = []
    rejected: list[np.ndarray] = []
    index: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    for comparison in comparisons:
        pairs = np.arange(encoded.first_pair[comparison], encoded.first_pair[comparison + 1])
        chosen.append(encoded.winners[pairs] + len(rows))
        rejected.append(encoded.losers[pairs] + len(rows))
        index.append(pairs)
        rows += encoded.rows(comparison)
        starts.append(encoded.response_starts(comparison))
    if not rows:
        rows, starts = encoded.rows(0)[:1], [encoded.response_starts(0)[:1]]
    return Batch(*pad_rows(rows, pad_id), _pairs(encoded, chosen, rejected, index), torch.from_numpy(_joined(starts)))


def _pairs(
    encoded: EncodedComparisons, chosen: list[np.ndarray], rejected: list[np.ndarray], index: list[np.ndarray]
) -> Pairs:
    place = _joined(index)
    columns = {name: torch.from_numpy(values[place]) for name, values in encoded.columns.items()}
    return Pairs(
        torch.from_numpy(_joined(chosen)),
        torch.from_numpy(_joined(rejected)),
        {**columns, "index": torch.from_numpy(place)},
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
