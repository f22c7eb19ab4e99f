"""Rewards of a batch that sum to zero."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from aplot_lightning.objectives.options import not_negative
from aplot_lightning.objectives.regularizers.base import Regularizer, weighted_mean
from aplot_lightning.types import Scores


class BatchSum(Regularizer):
    """Draws the mean of all rewards of the optimizer batch to zero, and leaves each pair's own mean free (BSR).

    Formula:
        λ · n · (mean of all 2n rewards)² = λ (Σ r)² / (4n)

    Args:
        coefficient: λ, at least 0.

    When to use it: to give rewards a place and hold back their growth on pairs that are already right, without taking
    away what prompts differ by, as `Centering` does.

    Source: batch-wise sum-to-zero regularization (2505.07271), λ = 1e-3.

    Deviations: with weights in the data both the mean and n carry them (n is Σ w), so that a pair of weight 2 counts as
    two equal pairs; without them it is the formula above. n counts pairs of the whole optimizer batch.
    """

    separable = False

    def __init__(self, coefficient: float = 1e-3) -> None:
        super().__init__()
        self.coefficient = not_negative("coefficient", coefficient)

    def forward(
        self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]
    ) -> Tensor:
        mean = weighted_mean((chosen.rewards + rejected.rewards) / 2, weights)
        return self.coefficient * weights.sum() * mean**2

    def describe(self) -> str:
        return f"batch sum {self.coefficient:g}"
