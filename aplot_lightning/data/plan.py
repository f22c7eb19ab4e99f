"""Which comparisons meet in which optimizer batch: a pure function of (seed, epoch, offset).

Nothing has to be saved to go on in mid-epoch, and any number of ranks sees the same optimizer batches. Comparisons are
drawn at random into optimizer batches, because a transport plan lives over the whole batch.
"""

from __future__ import annotations

import numpy as np


class BatchPlan:
    """The optimizer batches of every epoch.

    A comparison belongs to the batch in which its first pair falls, so plain pairs make batches of exactly
    `batch_size` (the last of an epoch may be smaller), no comparison is split, and no batch is empty.

    Args:
        pair_counts: (C,) int64, pairs of each comparison.
        batch_size: pairs in one optimizer batch, over all ranks and micro-batches.
        seed: the order of the data.
        groups: (C,) int64, a number for each comparison; every batch then holds comparisons of every group, in about
            the groups' proportions, and about `batch_size` pairs. None to draw without regard to groups.
        weights: (C,) float, how often an epoch draws each comparison, above 0. Those of one weight (and group) are a
            class: all are drawn as often as the weight's whole part, and a random share of them, anew in every epoch
            and equally large in each, once more for the rest. None draws each once.

    An epoch keeps about three arrays of int64, as long as the comparisons it draws.

    Raises:
        ValueError: a group that is too small to be in every batch, or a weight that is not above 0 and finite.
    """

    def __init__(
        self,
        pair_counts: np.ndarray,
        batch_size: int,
        seed: int,
        groups: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        self.pair_counts = pair_counts
        self.batch_size = batch_size
        self.seed = seed
        self.groups = groups
        self._classes = _Classes(weights, groups) if weights is not None and np.any(weights != 1) else None
        self.pairs_per_epoch = int(pair_counts.sum())  # on average, where a share of n-ary comparisons is drawn
        drawn = len(pair_counts)
        if self._classes is not None:
            self.pairs_per_epoch = max(1, round(float((self._classes.chances() * pair_counts).sum())))
            drawn = self._classes.drawn
        self.batches_per_epoch = min(-(-self.pairs_per_epoch // batch_size), drawn)
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        if groups is not None:
            sizes = np.bincount(groups) if self._classes is None else self._classes.group_sizes(groups)
            small = int(sizes.argmin())
            if sizes[small] < self.batches_per_epoch:
                raise ValueError(
                    f"group {small} has fewer comparisons than there are optimizer batches in an epoch "
                    f"({sizes[small]} and {self.batches_per_epoch})"
                )

    def batch(self, epoch: int, offset: int) -> np.ndarray:
        """The comparisons of batch `offset` of an epoch, (c,) int64, in a random order.

        One that an epoch draws m times comes back after about 1/m of the epoch, so that a batch holds it twice only
        where an epoch has hardly more batches than that.
        """
        if self._epoch is None or self._epoch[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self.pair_counts)) if self._classes is None else self._classes.draw(random)
            if self.groups is None:
                batch_of = self._fill(self.pair_counts[order])
            else:
                order, batch_of = self._spread(order, random)
            self._epoch = epoch, order, batch_of
        _, order, batch_of = self._epoch
        return order[np.searchsorted(batch_of, offset) : np.searchsorted(batch_of, offset, side="right")]

    def _fill(self, counts: np.ndarray) -> np.ndarray:
        """Fills batch after batch with comparisons of these pair counts; none stays empty."""
        ends = np.cumsum(counts)
        batch_of = (ends - counts) // self.batch_size
        if ends[-1] != self.pairs_per_epoch:
            # the share of n-ary comparisons drawn has more or fewer pairs than the mean: as many batches, other sizes
            batch_of = (ends - counts) * self.batches_per_epoch // ends[-1]
        # a comparison that reaches over a whole batch would leave it empty: those after it move up, to the last batch
        place = np.arange(len(counts))
        batch_of = place + np.minimum.accumulate(batch_of - place)
        return np.maximum(batch_of, place + self.batches_per_epoch - len(counts))

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


class _Classes:
    """Comparisons of one weight (and group), and how many of them an epoch draws.

    Attributes:
        of: (C,) int32, the class of each comparison.
        whole: (K,) int64, how often each of a class is drawn in any case.
        more: (K,) int64, how many of a class are drawn once more, at random.
        drawn: comparisons drawn in an epoch, copies counted.
    """

    def __init__(self, weights: np.ndarray, groups: np.ndarray | None) -> None:
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError("a weight is not above 0 and finite")
        kinds, of = np.unique(weights, return_inverse=True)
        if groups is not None:
            both, of = np.unique(groups * len(kinds) + of, return_inverse=True)
            kinds = kinds[both % len(kinds)]
        self.of = of.astype(np.int32)
        self.sizes = np.bincount(self.of)
        self.whole = np.floor(kinds).astype(np.int64)
        self.more = np.rint((kinds - self.whole) * self.sizes).astype(np.int64)
        self.more[(self.whole == 0) & (self.more == 0)] = 1  # a small weight draws something at least
        self.drawn = int((self.whole * self.sizes + self.more).sum())

    def chances(self) -> np.ndarray:
        """(C,) float64, how often each comparison is drawn in an epoch, on average."""
        return (self.whole + self.more / self.sizes)[self.of]

    def group_sizes(self, groups: np.ndarray) -> np.ndarray:
        """(G,) int64, how many comparisons of each group an epoch draws."""
        return np.rint(np.bincount(groups, self.chances())).astype(np.int64)

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """The comparisons of an epoch in a random order, (n,) int64; copies of one are equally far apart."""
        copies = self.whole[self.of]
        for kind in np.flatnonzero(self.more):
            members = np.flatnonzero(self.of == kind)
            copies[random.permutation(members)[: self.more[kind]]] += 1
        order = np.repeat(np.arange(len(copies)), copies)
        first = np.cumsum(copies) - copies
        places = random.random(len(copies))[order] + np.arange(len(order)) - first[order]
        places /= copies[order]
        return order[np.argsort(places, kind="stable")]
