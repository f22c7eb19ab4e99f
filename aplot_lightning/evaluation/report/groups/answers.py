"""What the runs of a group get right on one set: a row for each seed, a column for each pair."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aplot_lightning.evaluation.report.groups.groups import Group
from aplot_lightning.evaluation.report.outcomes import Outcomes, outcomes


@dataclass(frozen=True)
class Answers:
    """One value for each seed and pair.

    Attributes:
        seeds: what the rows are paired by with those of another group.
        keys: n of them, what a pair is known by, as in Outcomes.
        values: (seeds, n) float64: 1 right, 0 wrong; or the difference of two groups.
        prompts: (n,) int64, the clusters of pairs.
    """

    seeds: tuple[int, ...]
    keys: Sequence[Hashable]
    values: NDArray[np.float64]
    prompts: NDArray[np.int64]

    def minus(self, other: Answers) -> Answers:
        """The differences to another group, of the seeds and on the pairs that both have."""
        seeds = tuple(seed for seed in self.seeds if seed in other.seeds)
        columns, theirs = common_places([self.keys, other.keys])
        mine = self.of(seeds).values[:, columns]
        return Answers(
            seeds, _taken(self.keys, columns), mine - other.of(seeds).values[:, theirs], self.prompts[columns]
        )

    def of(self, seeds: Sequence[int]) -> Answers:
        """Those of some of the seeds, in that order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Answers(tuple(seeds), self.keys, self.values[rows], self.prompts)


def answers(group: Group, name: str) -> Answers | None:
    """What the group's runs get right on a set, on the pairs that all of those have which were evaluated on it.

    None where none was evaluated, or they have no pair in common.
    """
    found: dict[int, Outcomes] = {}
    for seed, run in group.runs.items():
        predictions = run.predictions(name)
        if predictions is not None:
            found[seed] = outcomes(predictions)
    if not found:
        return None
    each = list(found.values())
    places = common_places([one.keys for one in each])
    if not len(places[0]):
        return None
    values = np.stack([one.values[place] for one, place in zip(each, places, strict=True)])
    return Answers(tuple(found), _taken(each[0].keys, places[0]), values, each[0].prompts[places[0]])


def common_places(keys: Sequence[Sequence[Hashable]]) -> list[NDArray[np.int64]]:
    """Where each list holds the keys that are in all of them, in the order of the first."""
    if all(each == keys[0] for each in keys[1:]):  # nearly always
        return [np.arange(len(keys[0]))] * len(keys)
    places = [{key: place for place, key in enumerate(each)} for each in keys]
    common = [key for key in keys[0] if all(key in each for each in places)]
    return [np.array([each[key] for key in common], dtype=np.int64) for each in places]


def _taken(keys: Sequence[Hashable], places: NDArray[np.int64]) -> Sequence[Hashable]:
    return keys if len(places) == len(keys) else [keys[place] for place in places.tolist()]
