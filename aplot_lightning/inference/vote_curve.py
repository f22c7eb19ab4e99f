"""How often votes are right with 1, 2, 4 ... samples: nested subsets of the samples that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aplot_lightning.evaluation.statistics import Interval, bootstrap_interval
from aplot_lightning.inference.votes import Ballot, Floats, Weighting, share_right, tally_weights


@dataclass(frozen=True)
class Point:
    """Accuracy of one vote over n samples.

    Attributes:
        samples: n.
        accuracy: mean over prompts of the share of draws that are right.
        interval: 95 % bootstrap over prompts; None for a single prompt.
        prompts: how many have n samples or more, and so stand in the mean.
    """

    samples: int
    accuracy: float
    interval: Interval | None
    prompts: int


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 ... up to `most`, and `most` itself."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def vote_curves(
    ballots: Sequence[Ballot],
    weightings: Mapping[str, Weighting],
    *,
    choices: int | None = None,
    draws: int = 64,
    seed: int = 0,
) -> dict[str, list[Point]]:
    """Accuracy of every vote against the number of samples, on the same draws for all of them.

    A draw is a random order of a prompt's samples; its first n are the subset of n, so subsets are nested. Where
    leaders tie, the right one counts its share. A sample without an answer is spent like any other.

    Args:
        ballots: prompts with `right`; others are passed over.
        weightings: name -> form of vote.
        choices: m where it is known.
        draws: orders a prompt; the whole of its samples is one vote whatever the order.
        seed: of the draws.

    Returns:
        name -> a point for each of n = 1, 2, 4 ... and the most samples that a prompt has.
    """
    labelled = [ballot for ballot in ballots if ballot.right is not None and len(ballot.codes)]
    if not labelled:
        return {name: [] for name in weightings}
    sizes = powers_of_two(max(len(ballot.codes) for ballot in labelled))
    shares: dict[str, list[Floats]] = {name: [] for name in weightings}
    for place, ballot in enumerate(labelled):
        random = np.random.default_rng([seed, place])
        orders = random.permuted(np.tile(np.arange(len(ballot.codes)), (draws, 1)), axis=1)
        for name, weighting in weightings.items():
            shares[name].append(_shares(ballot, weighting, orders, sizes, choices))
    return {name: _points(np.array(values), sizes) for name, values in shares.items()}


def _shares(
    ballot: Ballot, weighting: Weighting, orders: np.ndarray, sizes: Sequence[int], choices: int | None
) -> Floats:
    """(sizes,) share of the draws in which the vote is right; NaN where the prompt has too few samples."""
    assert ballot.right is not None
    codes, base = ballot.codes[orders], weighting.base(ballot.rewards)[orders]
    result = np.full(len(sizes), np.nan)
    for place, size in enumerate(sizes):
        if size <= len(ballot.codes):
            drawn = slice(None) if size < len(ballot.codes) else slice(1)
            totals = tally_weights(codes[drawn, :size], base[drawn, :size], len(ballot.answers), weighting, choices)
            result[place] = share_right(totals, ballot.right).mean()
    return result


def _points(shares: Floats, sizes: Sequence[int]) -> list[Point]:
    """The means over prompts of (prompts, sizes) shares."""
    points = []
    for size, column in zip(sizes, shares.T, strict=True):
        counted = column[~np.isnan(column)]
        interval = bootstrap_interval(counted, np.arange(len(counted)))
        points.append(Point(size, float(counted.mean()), interval, len(counted)))
    return points
