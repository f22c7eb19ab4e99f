"""Means over prompts and seeds, where both are samples: of prompts that may come, and of runs that may be made.

Every run answers the same prompts, so prompts and seeds are crossed: a value is taken as the mean, plus what its seed,
its prompt and the two together add. The variance of the mean over all comes from their mean squares, as in Clark's
quasi-F (1973, "The language-as-fixed-effect fallacy"), for prompts of several pairs as in two-way clustering (Cameron,
Gelbach and Miller 2011, "Robust inference with multiway clustering"):

    V = V(prompts) + V(seeds) - V(rest),  never below either of the first two,

where V(prompts) is the variance of the mean when only prompts are drawn anew, V(seeds) when only seeds are, and the
rest is in both. Its degrees of freedom are Satterthwaite's (1946), so that few seeds make an interval wide as far as
seeds matter. Resampling the seeds instead does not do: three have ten samples, with 2/3 of the right variance.

Limits: what seeds add is taken to be normal. tests/evaluation/test_statistics_seeds.py simulates: where nothing
differs, 2 to 8 % of p-values are below 0.05 with three seeds or more, and up to 12 % with two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aplot_lightning.evaluation.statistics.prompts import Interval, bootstrap_means, percentiles, sign_flip_p

Floats = NDArray[np.float64]

FINE_BELOW = 0.05


@dataclass(frozen=True)
class SeededMean:
    """A mean over seeds, sets and pairs.

    Attributes:
        value: the mean.
        interval: with one seed the percentile bootstrap over prompts; with several over prompts and seeds. None where a
            set has fewer than two prompts.
        p_prompts: of the sign-flip permutation test over prompts, whose values are means over the seeds. Null
            hypothesis: these very models could change places in any prompt. None as for the interval.
        p_value: against a mean of 0. With several seeds of the t-test whose unit is a new seed and a new prompt; with
            one it is p_prompts, which says nothing of other seeds.
        by_seed: the mean of each seed.
        pairs: of all sets together.
    """

    value: float
    interval: Interval | None
    p_prompts: float | None
    p_value: float | None
    by_seed: tuple[float, ...]
    pairs: int


@dataclass(frozen=True)
class _Variance:
    """Of a mean: in all, of its part that new prompts change, and its degrees of freedom."""

    whole: float
    prompts: float
    degrees: float


def seeded_mean(
    sets: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> SeededMean:
    """The unweighted mean of the means of one or more sets over all seeds, with interval and p-values.

    The bootstrap draws prompts with all their pairs, for all seeds together, in each set on its own. With several seeds
    each draw gets a normal part of the variance that they add, and the whole is stretched from the normal's quantile to
    that of the t distribution with the mean's degrees of freedom.

    Args:
        sets: for each set the values (seeds, n), 0 and 1 or differences of them, and the pairs' clusters (n,). The rows
            of all sets are of the same seeds.
        resamples: how many bootstrap samples and sign flips; ten times as many flips where p_prompts is below 0.05.
        confidence: the interval's nominal coverage.
        seed: of the draws.

    Raises:
        ValueError: there is no set, a set has no pair, or the shapes differ.
    """
    columns = [_checked(values, clusters) for values, clusters in sets]
    if not columns or len({values.shape[0] for values, _ in columns}) != 1:
        raise ValueError("give one or more sets with the same seeds")
    by_seed = np.mean([values.mean(axis=1) for values, _ in columns], axis=0)
    value, seeds = float(by_seed.mean()), len(by_seed)
    plain = SeededMean(value, None, None, None, tuple(by_seed.tolist()), sum(groups.size for _, groups in columns))
    if any(np.unique(groups).size < 2 for _, groups in columns):
        return plain
    # sums over seeds: whole numbers stay whole, and equal clusters equal
    totals = [(values.sum(axis=0), groups) for values, groups in columns]
    draws = [
        bootstrap_means(total, groups, resamples=resamples, seed=seed + k) for k, (total, groups) in enumerate(totals)
    ]
    means = np.mean(draws, axis=0) / seeds
    p_prompts = sign_flip_p(totals, resamples=resamples, seed=seed)
    if p_prompts < FINE_BELOW:  # a correction for many tests multiplies it
        p_prompts = sign_flip_p(totals, resamples=10 * resamples, seed=[seed, 2])
    p_value = p_prompts
    if seeds > 1:
        variance = _variance(columns, by_seed)
        means = value + _stretch(variance, confidence) * (means + _seed_part(variance, resamples, seed) - value)
        p_value = _t_test(value, variance, otherwise=p_prompts)
    return SeededMean(value, percentiles(means, confidence), p_prompts, p_value, plain.by_seed, plain.pairs)


def _checked(values: ArrayLike, clusters: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    table, groups = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if table.ndim != 2 or groups.shape != table.shape[1:]:
        raise ValueError(f"values must be (seeds, n) and clusters (n,), not {table.shape} and {groups.shape}")
    if 0 in table.shape:
        raise ValueError("no pairs to average")
    return table, groups


def _variance(columns: Sequence[tuple[Floats, NDArray[np.int64]]], by_seed: Floats) -> _Variance:
    """Of the mean over sets, from the mean squares of each set's prompts and rest and of the seeds."""
    seeds = len(by_seed)
    of_seeds = float(np.var(by_seed, ddof=1)) / seeds
    parts = [[part / len(columns) ** 2 for part in _mean_squares(*each)] for each in columns]
    of_prompts, of_rest = (sum(part) for part in zip(*parts, strict=True))
    whole = max(of_prompts + of_seeds - of_rest, of_prompts, of_seeds)
    uncertainty = of_seeds**2 / (seeds - 1)
    for (prompts, rest), (_, groups) in zip(parts, columns, strict=True):
        degrees = np.unique(groups).size - 1
        uncertainty += prompts**2 / degrees + rest**2 / (degrees * (seeds - 1))
    return _Variance(whole, of_prompts, whole**2 / uncertainty if uncertainty else np.inf)


def _mean_squares(values: Floats, groups: NDArray[np.int64]) -> tuple[float, float]:
    """What a set's prompts, and its rest, give to the variance of its mean over pairs and seeds."""
    seeds, pairs = values.shape
    _, member = np.unique(groups, return_inverse=True)
    counts = np.bincount(member)
    clusters = len(counts)
    sums = np.stack([np.bincount(member, weights=row) for row in values])
    residuals = sums - counts * values.mean(axis=1, keepdims=True)  # (seeds, clusters)
    of_prompts = residuals.mean(axis=0)
    few = clusters / (clusters - 1) / pairs**2
    rest = np.square(residuals - of_prompts).sum() / (seeds * (seeds - 1))
    return float(few * np.square(of_prompts).sum()), float(few * rest)


def _seed_part(variance: _Variance, resamples: int, seed: int) -> Floats:
    spread = np.sqrt(max(0.0, variance.whole - variance.prompts))
    return np.random.default_rng([seed, 1]).normal(0.0, spread, resamples)


def _stretch(variance: _Variance, confidence: float) -> float:
    """How much further out than the normal's the quantile of the t distribution is."""
    from scipy.special import ndtri, stdtrit

    tail = (1 + confidence) / 2
    return float(stdtrit(variance.degrees, tail) / ndtri(tail)) if np.isfinite(variance.degrees) else 1.0


def _t_test(value: float, variance: _Variance, *, otherwise: float) -> float:
    """Two-sided; `otherwise` where no two seeds and no two prompts differ, which leaves no variance."""
    from scipy.special import stdtr

    if variance.whole == 0:
        return otherwise
    return float(2 * stdtr(variance.degrees, -abs(value) / np.sqrt(variance.whole)))
