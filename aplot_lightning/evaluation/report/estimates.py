"""Accuracies of groups of runs and their differences to the first group, with intervals and p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from aplot_lightning.evaluation.report.frame import paired
from aplot_lightning.evaluation.statistics import Interval, SeededMean, holm, seeded_mean

if TYPE_CHECKING:
    import pandas as pd

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        interval: 95 %, over prompts and seeds; over prompts only if there is one seed. None if there are fewer than two
            prompts.
        pairs: the number of pairs.
        seeds: the number of seeds.
    """

    value: float
    interval: Interval | None
    pairs: int
    seeds: int


@dataclass(frozen=True)
class Difference(Mean):
    """How much more accurate a group is than the first group, on the pairs and seeds that both have.

    Attributes:
        p_value: two-sided; with several seeds over prompts and seeds, with one equal to p_prompts.
        p_prompts: of the permutation test over prompts, which is about these runs and not about other seeds.
        p_holm: p_value after Holm's correction over all groups on ID and OOD mean; None for other sets.
    """

    p_value: float | None
    p_prompts: float | None
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE


def mean_of(sets: Sequence[pd.DataFrame | None]) -> Mean | None:
    """The unweighted mean accuracy over sets, over the seeds that have them all; a frame of `correct_frame` each."""
    found = _seeded(sets)
    if found is None:
        return None
    value, seeds = found
    interval = value.interval and (max(0.0, value.interval[0]), min(1.0, value.interval[1]))
    return Mean(value.value, interval, value.pairs, seeds)


def difference_of(sets: Sequence[pd.DataFrame | None], first: Sequence[pd.DataFrame | None]) -> Difference | None:
    """The unweighted mean over sets of the differences to the first group."""
    found = _seeded([paired(one, other) for one, other in zip(sets, first, strict=True)])
    if found is None:
        return None
    value, seeds = found
    return Difference(value.value, value.interval, value.pairs, seeds, value.p_value, value.p_prompts)


def _seeded(sets: Sequence[pd.DataFrame | None]) -> tuple[SeededMean, int] | None:
    """The mean over the seeds that all sets have, and the number of these seeds."""
    known = [each for each in sets if each is not None and not each.empty]
    if not known or len(known) < len(sets):
        return None
    seeds = [seed for seed in known[0].columns if all(seed in each.columns for each in known)]
    if not seeds:
        return None
    values = [
        (np.ascontiguousarray(each[seeds].to_numpy().T), each.index.get_level_values("prompt").to_numpy())
        for each in known
    ]
    return seeded_mean(values), len(seeds)


def with_holm(differences: Mapping[tuple[str, str], Difference]) -> dict[tuple[str, str], Difference]:
    """The differences with p-values that Holm's method corrects over all of them; those without a p-value as given."""
    tested = {key: each.p_value for key, each in differences.items() if each.p_value is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {key: replace(each, p_holm=corrected.get(key)) for key, each in differences.items()}
