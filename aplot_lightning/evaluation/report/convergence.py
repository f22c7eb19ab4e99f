"""How fast a run learns: optimizer steps until its validation accuracy is nearly as high as at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aplot_lightning.evaluation.report.runs import Run

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]

CURVE = "validation/accuracy"
SHARE = 0.95
CHANCE = 0.5
FEWEST_VALIDATIONS = 5  # with fewer, the answer mostly shows how often the run was validated


@dataclass(frozen=True)
class Convergence:
    """Optimizer steps until validation accuracy first was 95 % of the way from chance to its last value.

    Attributes:
        steps: the step of the first validation that was; None if it is unknown.
        at_most: it was the run's first validation, so the run may have been there earlier.
        reason: why there are no steps; empty if there are.
    """

    steps: int | None
    at_most: bool = False
    reason: str = ""


def validation_curve(run: Run) -> Curve | None:
    """Optimizer steps done, and the validation accuracy after them; None without such events."""
    curve = run.scalars([CURVE]).get(CURVE)
    return None if curve is None else (curve[0] + 1, curve[1])  # loggers count steps from 0


def steps_to_converge(curve: Curve | None) -> Convergence:
    """The step of the first validation whose accuracy is at least 0.5 + 0.95 (last accuracy - 0.5).

    Nothing is interpolated: the answer is a step at which the run was validated. There are no steps with fewer than
    five validations, or if the last accuracy is not above chance.
    """
    if curve is None:
        return Convergence(None, reason="no validation curve")
    steps, accuracies = curve
    if len(steps) < FEWEST_VALIDATIONS:
        return Convergence(None, reason=f"{len(steps)} validations, of the {FEWEST_VALIDATIONS} that it takes")
    if not accuracies[-1] > CHANCE:
        return Convergence(None, reason="ends no better than chance")
    bar = CHANCE + SHARE * (accuracies[-1] - CHANCE)
    index = int(np.argmax(accuracies >= bar))  # the last one always is
    return Convergence(int(steps[index]), at_most=index == 0)
