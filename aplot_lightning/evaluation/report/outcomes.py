"""Accuracies with intervals out of the predictions of runs, alone and paired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aplot_lightning.evaluation.report.runs import Columns
from aplot_lightning.evaluation.statistics import Interval, bootstrap_means, counted, percentiles, right


@dataclass(frozen=True)
class Outcomes:
    """One value for each pair of a set.

    Attributes:
        keys: n of them, what a pair is known by in another run: its id, its prompt, and which of its comparison's pairs
            it is.
        values: (n,) float64, 1 where the run is right and 0 where it is wrong; or the difference of two runs.
        prompts: (n,) int64, the bootstrap's clusters.
    """

    keys: list[Hashable]
    values: NDArray[np.float64]
    prompts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)

    def minus(self, other: Outcomes) -> Outcomes:
        """The differences to another run on the pairs that both have."""
        places = {key: place for place, key in enumerate(other.keys)}
        mine = [place for place, key in enumerate(self.keys) if key in places]
        theirs = [places[self.keys[place]] for place in mine]
        return Outcomes(
            [self.keys[place] for place in mine], self.values[mine] - other.values[theirs], self.prompts[mine]
        )


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval over prompts (None with fewer than two prompts), and the pairs that it is over."""

    value: float
    interval: Interval | None
    pairs: int


def outcomes(predictions: Columns) -> Outcomes:
    """Which pairs of a set a run got right, without the pairs that accuracy leaves out (target 1/2)."""
    kept = counted(predictions["target"])
    correct = right(predictions["chosen_reward"] - predictions["rejected_reward"], predictions["target"])
    prompts = predictions["prompt"][kept]
    seen: Counter[Hashable] = Counter()
    keys: list[Hashable] = []
    for identity in zip(predictions["id"][kept].tolist(), prompts.tolist(), strict=True):
        keys.append((*identity, seen[identity]))
        seen[identity] += 1
    return Outcomes(keys, correct[kept].astype(np.float64), prompts)


def estimate(sets: Sequence[Outcomes]) -> Estimate | None:
    """The unweighted mean of the means of one or more sets, with an interval that draws prompts in each set on its own.

    None without sets, or where one of them has no pairs.
    """
    if not sets or not all(map(len, sets)):
        return None
    value = float(np.mean([each.values.mean() for each in sets]))
    pairs = sum(map(len, sets))
    if any(np.unique(each.prompts).size < 2 for each in sets):
        return Estimate(value, None, pairs)
    # a seed for each set, so that their draws are independent; seed 0 for a single one, as in metrics.json
    means = [bootstrap_means(each.values, each.prompts, seed=seed) for seed, each in enumerate(sets)]
    return Estimate(value, percentiles(np.mean(means, axis=0)), pairs)
