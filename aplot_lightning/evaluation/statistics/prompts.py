"""Intervals and paired differences over prompts, in NumPy.

Pairs of one prompt are not independent, so the unit that is drawn is the cluster (the prompt), with all its pairs. A
resample needs of a cluster only its sum and its count, and clusters with the same sum and count are interchangeable:
how often each kind is drawn is multinomial. So the cost depends on the number of kinds (a few, when a value is right or
wrong) and not on the number of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = TypeVar("Array", bound=Any)  # a NumPy array or a torch tensor
Floats = NDArray[np.float64]
Interval = tuple[float, float]

CELLS_AT_ONCE = 2_000_000  # of the (resamples, kinds) table of draws: 16 MB of int64


def right(gap: Array, target: Array) -> Array:
    """Which pairs are right: the gap has the sign of 2 t - 1; a tie is wrong. NumPy or torch, (n,) -> (n,) bool."""
    return ((gap > 0) & (target > 0.5)) | ((gap < 0) & (target < 0.5))


def counted(target: Array) -> Array:
    """Which pairs accuracy counts: all but those whose target is exactly 1/2. (n,) -> (n,) bool."""
    return target != 0.5


def bootstrap_interval(
    correct: ArrayLike,
    clusters: ArrayLike,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int | Sequence[int] = 0,
) -> Interval | None:
    """Percentile bootstrap interval of the mean of `correct` over all pairs, drawing whole clusters (Efron 1979).

    Args:
        correct: (n,) one value per pair, usually 0 or 1.
        clusters: (n,) integers; pairs of one prompt have the same number.
        resamples: how many bootstrap samples.
        confidence: the interval's nominal coverage.
        seed: of the draws; the same data and seed give the same interval.

    Returns:
        (low, high), or None with fewer than two clusters, where the spread between prompts cannot be known.
    """
    values, groups = _columns(correct, clusters)
    if np.unique(groups).size < 2:
        return None
    return percentiles(bootstrap_means(values, groups, resamples=resamples, seed=seed), confidence)


def bootstrap_means(
    correct: ArrayLike, clusters: ArrayLike, *, resamples: int = 2000, seed: int | Sequence[int] = 0
) -> Floats:
    """The means of `resamples` bootstrap samples over clusters: (resamples,) float64.

    Raises:
        ValueError: there is no pair.
    """
    values, groups = _columns(correct, clusters)
    if values.size == 0:
        raise ValueError("no pairs to draw from")
    sums, counts = _sums(values, groups)
    kinds, members = np.unique(np.stack([sums, counts], axis=1), axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    rows = max(1, CELLS_AT_ONCE // len(kinds))
    means = []
    for start in range(0, resamples, rows):
        drawn = random.multinomial(len(sums), members / members.sum(), size=min(rows, resamples - start))
        totals = drawn @ kinds
        means.append(totals[:, 0] / totals[:, 1])
    return np.concatenate(means)


def percentiles(means: Floats, confidence: float = 0.95) -> Interval:
    """The central `confidence` of bootstrap means."""
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """How two models differ on the same pairs.

    Attributes:
        difference: mean of a - b.
        interval: its bootstrap interval over clusters; None with fewer than two clusters.
        p_value: two-sided, of the sign-flip permutation test over clusters.
    """

    difference: float
    interval: Interval | None
    p_value: float


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int | Sequence[int] = 0,
) -> PairedDifference:
    """Mean of a - b with its bootstrap interval and permutation p-value, both over clusters.

    Under the null hypothesis the two models may change places in any prompt: the sign of each cluster's summed
    difference is flipped at random, and p = (1 + #{|T*| >= |T|}) / (1 + resamples), which is never 0.

    Args:
        a: (n,) values of the first model, usually 0 or 1.
        b: (n,) values of the second model on the same pairs.
        clusters: (n,) integers, as in bootstrap_interval.

    Raises:
        ValueError: there is no pair, or the shapes differ.
    """
    first, groups = _columns(a, clusters)
    second, _ = _columns(b, clusters)
    differences = first - second
    if differences.size == 0:
        raise ValueError("no pairs to compare")
    interval = bootstrap_interval(differences, groups, resamples=resamples, confidence=confidence, seed=seed)
    p_value = sign_flip_p([(differences, groups)], resamples=resamples, seed=seed)
    return PairedDifference(float(differences.mean()), interval, p_value)


def sign_flip_p(
    sets: Sequence[tuple[ArrayLike, ArrayLike]], *, resamples: int = 2000, seed: int | Sequence[int] = 0
) -> float:
    """Two-sided p-value of the sign-flip permutation test over clusters, of the unweighted mean of the sets' means.

    Null hypothesis: in any prompt the two models could change places. Each cluster's summed difference gets a random
    sign, and p = (1 + #{|T*| >= |T|}) / (1 + resamples).

    Args:
        sets: for each set the differences (n,) and their clusters (n,); a single set is the plain test.
        resamples: how many random assignments of signs.
        seed: of the signs.

    Raises:
        ValueError: a set has no pair.
    """
    parts = []
    for values, clusters in sets:
        differences, groups = _columns(values, clusters)
        if differences.size == 0:
            raise ValueError("no pairs to compare")
        # of a single set the sums stay whole numbers, so that equal ones are equal
        parts.append(_sums(differences, groups)[0] / (differences.size if len(sets) > 1 else 1))
    sums = np.concatenate(parts)
    # m clusters of size |d| with random signs add up to |d| (2 Binomial(m, 1/2) - m)
    sizes, members = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    random = np.random.default_rng(seed)
    flipped = np.zeros(resamples)
    for size, count in zip(sizes, members, strict=True):
        flipped += size * (2.0 * random.binomial(count, 0.5, size=resamples) - count)
    slack = 1e-9 * float(np.abs(sums).sum())  # sums of floats in another order
    extreme = np.count_nonzero(np.abs(flipped) >= abs(sums.sum()) - slack)
    return (1 + int(extreme)) / (1 + resamples)


def _sums(values: Floats, groups: NDArray[Any]) -> tuple[Floats, Floats]:
    """Sum and count of each cluster, (clusters,) each."""
    _, member = np.unique(groups, return_inverse=True)
    counts = np.bincount(member).astype(np.float64)
    return np.bincount(member, weights=values).astype(np.float64), counts


def _columns(values: ArrayLike, clusters: ArrayLike) -> tuple[Floats, NDArray[Any]]:
    column, groups = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if column.ndim != 1 or column.shape != groups.shape:
        raise ValueError(f"values and clusters must be 1-D and equally long, not {column.shape} and {groups.shape}")
    return column, groups
