"""The batch-sum regularizer."""

from __future__ import annotations

from torch import Tensor

from aplot_lightning.objectives.component import Columns, Regularizer, not_negative, weighted_mean
from aplot_lightning.types import Scores


class BatchSum(Regularizer):
    """Pulls the mean of all rewards of the optimizer batch towards zero; the mean of a single pair stays free (BSR).

    Formula:
        λ · n · (mean of all 2n rewards)² = λ (Σ r)² / (4n)

    Args:
        coefficient: λ, at least 0.

    When to use it: to fix the level of the rewards and limit their growth on pairs that are already right, without
    removing the differences between prompts, as `Centering` does.

    Source: batch-wise sum-to-zero regularization (2505.07271), λ = 1e-3.

    Deviations: if the data has weights, the mean is weighted and n is Σ w, so that a pair of weight 2 counts as two
    equal pairs. n counts the pairs of the whole optimizer batch.
    """

    separable = False

    def __init__(self, coefficient: float = 1e-3) -> None:
        super().__init__()
        self.coefficient = not_negative("coefficient", coefficient)

    def forward(self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        mean = weighted_mean((chosen.rewards + rejected.rewards) / 2, weights)
        return self.coefficient * weights.sum() * mean**2

    def describe(self) -> str:
        return f"batch sum {self.coefficient:g}"
