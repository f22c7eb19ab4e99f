"""Margins that do not look at the model: none, a constant, the data's own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from aplot_lightning.objectives.margins.base import Margin
from aplot_lightning.objectives.part import required_column
from aplot_lightning.types import Scores


class NoMargin(Margin):
    """No margin.

    Formula:
        m_i = 0

    When to use it: plain Bradley–Terry, the baseline of every comparison.

    Source: Bradley and Terry 1952.

    Deviations: none.
    """

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        return torch.zeros_like(chosen.rewards)

    def describe(self) -> str:
        return "no margin"


class ConstantMargin(Margin):
    """The same margin for every pair.

    Formula:
        m_i = c

    Args:
        value: c.

    When to use it: as the control of an adaptive margin, at that margin's mean: what is left of the difference is what
    adapting adds.

    Source: none; the ablation that method section 2 of this project asks for.

    Deviations: none.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = _finite("value", value)

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        return torch.full_like(chosen.rewards, self.value)

    def describe(self) -> str:
        return f"constant margin {self.value:g}"


class ColumnMargin(Margin):
    """The margin that the data gives each pair.

    Formula:
        m_i = scale · margin_i

    Args:
        scale: factor on the `margin` column.

    When to use it: annotators graded how much better chosen is, or both sides have scores whose difference counts.

    Source: Llama 2 (2307.09288), equation 2; TRL's RewardTrainer.

    Deviations: Llama 2 maps its four grades to 1, 2/3, 1/3, 0 or 3, 2, 1, 0; here the column holds the number itself.
    """

    columns = ("margin",)

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = _finite("scale", scale)

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        return self.scale * required_column(columns, "margin", "ColumnMargin").to(chosen.rewards)

    def describe(self) -> str:
        return "the data's margin" if self.scale == 1 else f"the data's margin x {self.scale:g}"


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return value
