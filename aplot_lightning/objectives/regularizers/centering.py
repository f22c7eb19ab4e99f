"""The centering regularizer."""

from __future__ import annotations

from torch import Tensor

from aplot_lightning.objectives.component import Columns, Regularizer, not_negative, weighted_mean
from aplot_lightning.types import Scores


class Centering(Regularizer):
    """Keeps the two rewards of each pair around zero; the gap alone does not fix their level.

    Formula:
        c · mean (r_i⁺ + r_i⁻)²

    Args:
        coefficient: c, at least 0.

    When to use it: the level of the rewards matters, not only their differences: several models are mixed, or
    reinforcement learning needs rewards near 0. It also reduces offsets that a prompt adds to both of its responses.

    Source: Eisenstein and others (2312.09244); TRL's `center_rewards_coefficient`, 0.01.

    Deviations: none. The mean uses the data's weights.
    """

    def __init__(self, coefficient: float = 0.01) -> None:
        super().__init__()
        self.coefficient = not_negative("coefficient", coefficient)

    def forward(self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        return self.coefficient * weighted_mean((chosen.rewards + rejected.rewards) ** 2, weights)

    def describe(self) -> str:
        return f"centering {self.coefficient:g}"
