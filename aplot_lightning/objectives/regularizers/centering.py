"""Rewards held near zero, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from aplot_lightning.objectives.options import not_negative
from aplot_lightning.objectives.regularizers.base import Regularizer, weighted_mean
from aplot_lightning.types import Scores


class Centering(Regularizer):
    """Keeps the two rewards of each pair around zero, which the gap alone leaves free.

    Formula:
        c · mean (r_i⁺ + r_i⁻)²

    Args:
        coefficient: c, at least 0.

    When to use it: rewards must have a place as well as differences: several models are mixed, or reinforcement
    learning wants them near 0. It also holds down offsets that a prompt gives to both of its responses.

    Source: Eisenstein and others (2312.09244); TRL's
    `center_rewards_coefficient`, 0.01.

    Deviations: none. The mean carries the data's weights.
    """

    def __init__(self, coefficient: float = 0.01) -> None:
        super().__init__()
        self.coefficient = not_negative("coefficient", coefficient)

    def forward(
        self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]
    ) -> Tensor:
        return self.coefficient * weighted_mean((chosen.rewards + rejected.rewards) ** 2, weights)

    def describe(self) -> str:
        return f"centering {self.coefficient:g}"
