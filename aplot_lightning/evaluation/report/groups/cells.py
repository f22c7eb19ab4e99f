"""One group on one set: accuracy, its difference to the first group, and the other metrics of each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from aplot_lightning.evaluation.report.groups.answers import Answers
from aplot_lightning.evaluation.report.groups.groups import Group, figures
from aplot_lightning.evaluation.report.outcomes import Estimate
from aplot_lightning.evaluation.statistics import SeededMean, holm, seeded_mean

OOD_MEAN_KIND = "ood_mean"
TESTED = ("id", OOD_MEAN_KIND)  # kinds of sets that Holm's family is over: the two questions a comparison is made for


@dataclass(frozen=True)
class Mean(Estimate):
    """A mean over seeds; its interval is over prompts and seeds, over prompts only where there is one seed.

    Attributes:
        seeds: how many.
    """

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


@dataclass(frozen=True)
class Cell:
    """One group on one set.

    Attributes:
        group: the group's name.
        name: the set's name, or ``OOD mean``.
        kind: validation, ood_validation, id, ood, or ood_mean.
        accuracy: None where no run of the group was evaluated on it.
        difference: to the first group; None for the first group itself, and where there is nothing in common.
        metrics: of metrics.json, for each seed: {"accuracy": {seed: value}, "ece": {...}, ...}.
    """

    group: str
    name: str
    kind: str
    accuracy: Mean | None = None
    difference: Difference | None = None
    metrics: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def metric(self, name: str) -> float | None:
        """Mean over the seeds of a metric of metrics.json."""
        values = list(self.metrics.get(name, {}).values())
        return float(np.mean(values)) if values else None


def mean_of(sets: Sequence[Answers | None]) -> Mean | None:
    """The unweighted mean accuracy of sets, over the seeds that have them all."""
    found = _seeded(sets)
    if found is None:
        return None
    value, seeds = found
    interval = value.interval and (max(0.0, value.interval[0]), min(1.0, value.interval[1]))
    return Mean(value.value, interval, value.pairs, seeds)


def difference_of(sets: Sequence[Answers | None], first: Sequence[Answers | None]) -> Difference | None:
    """The unweighted mean over sets of the differences to the first group."""
    both = [a.minus(b) if a and b else None for a, b in zip(sets, first, strict=True)]
    found = _seeded(both)
    if found is None:
        return None
    value, seeds = found
    return Difference(value.value, value.interval, value.pairs, seeds, value.p_value, value.p_prompts)


def _seeded(sets: Sequence[Answers | None]) -> tuple[SeededMean, int] | None:
    """Over the seeds that all sets have, and their number."""
    known = [each for each in sets if each is not None and each.values.size]
    if not known or len(known) < len(sets):
        return None
    seeds = [seed for seed in known[0].seeds if all(seed in each.seeds for each in known)]
    if not seeds:
        return None
    return seeded_mean([(each.of(seeds).values, each.prompts) for each in known]), len(seeds)


def metrics_of(group: Group, sets: Mapping[str, str]) -> dict[str, dict[int, float]]:
    """Every number that metrics.json has of all sets (name: kind), for each seed; of several sets their mean."""
    found: dict[str, dict[int, float]] = {}
    for seed, run in group.runs.items():
        entries = [figures(run, name, kind) for name, kind in sets.items()]
        for metric in entries[0] if entries else ():
            values = [entry.get(metric) for entry in entries]
            if metric != "pairs" and all(isinstance(value, int | float) for value in values):
                found.setdefault(metric, {})[seed] = float(np.mean(values))  # type: ignore[arg-type]
    return found


def corrected(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with Holm's correction over every difference on ID and on the OOD mean."""
    tested = [k for k, cell in enumerate(cells) if cell.kind in TESTED and cell.difference and _p(cell) is not None]
    adjusted = dict(zip(tested, holm([_p(cells[k]) or 0.0 for k in tested]), strict=True))
    return [
        replace(cell, difference=replace(cell.difference, p_holm=adjusted[k])) if k in adjusted else cell  # type: ignore[type-var]
        for k, cell in enumerate(cells)
    ]


def _p(cell: Cell) -> float | None:
    return cell.difference.p_value if cell.difference else None
