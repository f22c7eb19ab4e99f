"""The positive-reward regularizer."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.component import Columns, Regularizer, not_negative, weighted_mean
from aplot_lightning.types import Scores


class Positive(Regularizer):
    """Pushes the mean reward of the chosen responses of the optimizer batch above zero.

    Formula:
        -c · log σ(mean r_i⁺)

    Args:
        coefficient: c, at least 0.

    When to use it: the sign of a reward should have a meaning (above 0: good), or to reproduce GRM's baseline.

    Source: a baseline of GRM's release (2406.10216), c = 0.1.

    Deviations: the mean is over the whole optimizer batch, for any micro-batch size, and uses the data's weights.
    """

    separable = False

    def __init__(self, coefficient: float = 0.1) -> None:
        super().__init__()
        self.coefficient = not_negative("coefficient", coefficient)

    def forward(self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        term = functional.softplus(-weighted_mean(chosen.rewards, weights))
        return self.coefficient * term * (weights.sum() > 0)  # 0 without pairs

    def describe(self) -> str:
        return f"positive {self.coefficient:g}"
