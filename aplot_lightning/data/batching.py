"""Which comparisons meet in which optimizer batch, and how a batch is cut into micro-batches.

The plan is a pure function of (seed, epoch, offset): nothing has to be saved to go on in mid-epoch, and any number of
ranks sees the same optimizer batches. Comparisons are drawn at random into optimizer batches, because a transport plan
lives over the whole batch; only inside a batch are they sorted by length, to save padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.types import Batch, Pairs


class BatchPlan:
    """The optimizer batches of every epoch.

    A comparison belongs to the batch in which its first pair falls, so plain pairs make batches of exactly
    `batch_size` (the last of an epoch may be smaller) and no comparison is split.

    Args:
        pair_counts: (C,) int64, pairs of each comparison.
        batch_size: pairs in one optimizer batch, over all ranks and micro-batches.
        seed: the order of the data.
        groups: (C,) int64, a number for each comparison; every batch then holds comparisons of every group, in about
            the groups' proportions, and about `batch_size` pairs. None to draw without regard to groups.

    Raises:
        ValueError: a group that is too small to be in every batch.
    """

    def __init__(self, pair_counts: np.ndarray, batch_size: int, seed: int, groups: np.ndarray | None = None) -> None:
        self.pair_counts = pair_counts
        self.batch_size = batch_size
        self.seed = seed
        self.groups = groups
        self.batches_per_epoch = -(-int(pair_counts.sum()) // batch_size)
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        if groups is not None:
            sizes = np.bincount(groups)
            small = int(sizes.argmin())
            if sizes[small] < self.batches_per_epoch:
                raise ValueError(
                    f"group {small} has fewer comparisons than there are optimizer batches in an epoch "
                    f"({sizes[small]} and {self.batches_per_epoch})"
                )

    def batch(self, epoch: int, offset: int) -> np.ndarray:
        """The comparisons of batch `offset` of an epoch, (c,) int64, in a random order."""
        if self._epoch is None or self._epoch[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self.pair_counts))
            if self.groups is None:
                counts = self.pair_counts[order]
                batch_of = (np.cumsum(counts) - counts) // self.batch_size
            else:
                order, batch_of = self._spread(order, random)
            self._epoch = epoch, order, batch_of
        _, order, batch_of = self._epoch
        return order[np.searchsorted(batch_of, offset) : np.searchsorted(batch_of, offset, side="right")]

    def _spread(self, order: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Deals each group's comparisons evenly over the batches, each group from a place of its own."""
        assert self.groups is not None
        group_of = self.groups[order]
        batch_of = np.empty(len(order), dtype=np.int64)
        for group in np.unique(group_of):
            members = np.flatnonzero(group_of == group)
            places = np.arange(len(members)) + random.random()
            batch_of[members] = (places * self.batches_per_epoch / len(members)).astype(np.int64)
        by_batch = np.argsort(batch_of, kind="stable")
        return order[by_batch], batch_of[by_batch]


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
