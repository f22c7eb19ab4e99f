"""What training took: steps until the run was nearly as good as in the end, time, throughput and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aplot_lightning.evaluation.report.groups.groups import Group
from aplot_lightning.evaluation.report.runs import Run

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]

CURVE = "validation/accuracy"
SHARE = 0.95
CHANCE = 0.5
FEWEST_VALIDATIONS = 5  # with fewer, the answer is little more than how often the run was validated
TRAINING = ("seconds", "pairs_per_second", "tokens_per_second", "peak_memory_mib", "steps")


@dataclass(frozen=True)
class Convergence:
    """Optimizer steps until validation accuracy first was 95 % of the way from chance to its last value.

    Attributes:
        steps: of the first validation that was; None where it cannot be said.
        at_most: it was the run's first validation, so it may have been earlier.
        reason: why there are no steps; empty where there are.
    """

    steps: int | None
    at_most: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Cost:
    """What a group's runs took, each by seed.

    Attributes:
        group: the group's name.
        convergence: the steps to 95 % of the final accuracy above chance.
        training: the numbers of metrics.json's `train`: {"seconds": {seed: value}, ...}.
        curves: steps and validation accuracies, of the runs that have them.
    """

    group: str
    convergence: dict[int, Convergence]
    training: dict[str, dict[int, float]]
    curves: dict[int, Curve]

    @property
    def steps(self) -> float | None:
        """Mean of the steps to converge over the seeds; None where one of them has none, so that no one is left out."""
        known = [each.steps for each in self.convergence.values() if each.steps is not None]
        return float(np.mean(known)) if known and len(known) == len(self.convergence) else None


def cost_of(group: Group) -> Cost:
    """Reads the curves and metrics of a group's runs."""
    curves = {seed: curve for seed, run in group.runs.items() if (curve := validation_curve(run)) is not None}
    training: dict[str, dict[int, float]] = {}
    for seed, run in group.runs.items():
        train: dict[str, Any] = run.metrics.get("train") or {}
        for name in TRAINING:
            if train.get(name) is not None:
                training.setdefault(name, {})[seed] = float(train[name])
    convergence = {seed: steps_to_converge(curves.get(seed)) for seed in group.runs}
    return Cost(group.name, convergence, training, curves)


def validation_curve(run: Run) -> Curve | None:
    """Optimizer steps done, and the validation accuracy after them; None without such events."""
    curve = run.scalars([CURVE]).get(CURVE)
    return None if curve is None else (curve[0] + 1, curve[1])  # loggers count steps from 0


def steps_to_converge(curve: Curve | None) -> Convergence:
    """The step of the first validation whose accuracy is at least 0.5 + 0.95 (last accuracy - 0.5).

    Nothing is interpolated: the answer is a step at which the run was validated. No steps are given with fewer than
    five validations, and where the last accuracy is not above chance.
    """
    if curve is None:
        return Convergence(None, reason="no validation curve")
    steps, accuracies = curve
    if len(steps) < FEWEST_VALIDATIONS:
        return Convergence(None, reason=f"{len(steps)} validations, of the {FEWEST_VALIDATIONS} that it takes")
    if not accuracies[-1] > CHANCE:
        return Convergence(None, reason="ends no better than chance")
    bar = CHANCE + SHARE * (accuracies[-1] - CHANCE)
    place = int(np.argmax(accuracies >= bar))  # the last one is, so there is a first
    return Convergence(int(steps[place]), at_most=place == 0)
