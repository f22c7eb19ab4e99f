"""Chosen rewards above zero."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.options import not_negative
from aplot_lightning.objectives.regularizers.base import Regularizer, weighted_mean
from aplot_lightning.types import Scores


class Positive(Regularizer):
    """Asks the chosen responses of the optimizer batch for a mean reward above zero.

    Formula:
        -c · log σ(mean r_i⁺)

    Args:
        coefficient: c, at least 0.

    When to use it: rewards must have a sign that means something (above 0: good), or as the baseline that GRM has.

    Source: a baseline of GRM's release (2406.10216), c = 0.1.

    Deviations: the mean is over the whole optimizer batch, whatever the micro-batch, and carries the data's weights.
    """

    separable = False

    def __init__(self, coefficient: float = 0.1) -> None:
        super().__init__()
        self.coefficient = not_negative("coefficient", coefficient)

    def forward(
        self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]
    ) -> Tensor:
        term = functional.softplus(-weighted_mean(chosen.rewards, weights))
        return self.coefficient * term * (weights.sum() > 0)  # without pairs there is nothing to ask for

    def describe(self) -> str:
        return f"positive {self.coefficient:g}"
