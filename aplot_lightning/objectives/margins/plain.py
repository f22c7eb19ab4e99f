"""Margins that do not depend on the model: none, a constant, a column of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns, Margin, finite, required_column
from aplot_lightning.types import Scores


class NoMargin(Margin):
    """No margin.

    Formula:
        m_i = 0

    When to use it: plain Bradley–Terry, the baseline of every comparison.

    Source: Bradley and Terry 1952.

    Deviations: none.
    """

    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        return torch.zeros_like(chosen.rewards)

    def describe(self) -> str:
        return "no margin"


class ConstantMargin(Margin):
    """The same margin for every pair.

    Formula:
        m_i = c

    Args:
        value: c.

    When to use it: as the control of an adaptive margin, set to that margin's mean: the remaining difference is what
    adapting adds.

    Source: none; an ablation of APLOT (docs/method.md, section 2).

    Deviations: none.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = finite("value", value)

    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        return torch.full_like(chosen.rewards, self.value)

    def describe(self) -> str:
        return f"constant margin {self.value:g}"


class ColumnMargin(Margin):
    """Takes the margin of each pair from the data.

    Formula:
        m_i = scale · margin_i

    Args:
        scale: factor on the `margin` column.

    When to use it: annotators graded how much better the chosen response is, or both sides have scores.

    Source: Llama 2 (2307.09288), equation 2; TRL's RewardTrainer.

    Deviations: Llama 2 maps its four grades to 1, 2/3, 1/3, 0 or 3, 2, 1, 0; here the column contains the number
    itself.
    """

    columns = ("margin",)

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = finite("scale", scale)

    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        return self.scale * required_column(columns, "margin", "ColumnMargin").to(chosen.rewards)

    def describe(self) -> str:
        return "the data's margin" if self.scale == 1 else f"the data's margin x {self.scale:g}"
