"""Which comparisons meet in which optimizer batch: a pure function of (seed, epoch, offset).

Nothing has to be saved to go on in mid-epoch, and any number of ranks sees the same optimizer batches. Comparisons are
drawn at random into optimizer batches, because a transport plan lives over the whole batch.
"""

from __future__ import annotations

import numpy as np


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
