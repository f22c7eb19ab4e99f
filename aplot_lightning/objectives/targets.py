"""Targets: the probability t in [0, 1] with which each pair's chosen response is said to be preferred."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from aplot_lightning.objectives.options import positive
from aplot_lightning.objectives.part import Part, required_column
from aplot_lightning.transport import at_least_float32
from aplot_lightning.types import Scores


class Target(Part, ABC):
    """Base of all targets."""

    @abstractmethod
    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        """Scores of both sides of n pairs and the pairs' columns -> t (n,), in the rewards' dtype, without gradient."""


class ColumnTarget(Target):
    """What the data says: its `target` column where it has one, else a plain preference.

    Formula:
        t_i = target_i, or 1 without the column

    When to use it: the default. Soft preferences (shares of votes, a judge's probabilities) count as they are.

    Source: soft labels of Bradley–Terry, as in cDPO and method section 3 of this project ("column").

    Deviations: none.
    """

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        if "target" not in columns:
            return torch.ones_like(chosen.rewards)
        return columns["target"].to(chosen.rewards)

    def describe(self) -> str:
        return ""


class HardTarget(Target):
    """The side that the data prefers, without its strength.

    Formula:
        t_i = (1 + sign(2 target_i - 1)) / 2, or 1 without the column; a target of 1/2 stays 1/2

    When to use it: to see what soft targets add, or where their strength is not to be trusted.

    Source: Bradley–Terry with hard labels.

    Deviations: none.
    """

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        if "target" not in columns:
            return torch.ones_like(chosen.rewards)
        target = at_least_float32(columns["target"])
        return ((1 + torch.sign(2 * target - 1)) / 2).to(chosen.rewards)

    def describe(self) -> str:
        return "hard targets"


class LabelSmoothing(Target):
    """Every label is wrong with probability alpha.

    Formula:
        t_i = (1 - α) target_i + α (1 - target_i), which is 1 - α for a plain pair

    Args:
        alpha: α, at least 0 and below 0.5.

    When to use it: noisy labels, or rewards that grow without bound on pairs that are already right.

    Source: label smoothing as the GRM paper's baseline (2406.10216, section 4) with α = 0.1; cDPO.

    Deviations: a soft target of the data is smoothed too, instead of being replaced.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must be at least 0 and below 0.5, got {alpha}")
        self.alpha = alpha
        self.labels = ColumnTarget()

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        return self.alpha + (1 - 2 * self.alpha) * self.labels(chosen, rejected, columns)

    def describe(self) -> str:
        return f"label smoothing {self.alpha:g}"


class Quality(Target):
    """The target follows from quality scores: a pair of near equals teaches less than a clear one (MMPO).

    Formula:
        t_i = σ(γ (s_i⁺ - s_i⁻))

    Args:
        gamma: γ, above 0, in units of one over the scores' own; to be tuned for data and model.

    When to use it: both sides of a pair have scores (ratings, a judge's) whose difference says how sure the preference
    is. The gap then aims at γ times the difference of scores.

    Source: MMPO (2410.03145); its code has γ = 2.2, 1.1 and 0.3 for its data and models.

    Deviations: the default is the middle one of these. A `target` column of the data is not used beside the scores.
    """

    columns = ("chosen_score", "rejected_score")

    def __init__(self, gamma: float = 1.1) -> None:
        super().__init__()
        self.gamma = positive("gamma", gamma)

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        better, worse = (at_least_float32(required_column(columns, name, "Quality")) for name in self.columns)
        return torch.sigmoid(self.gamma * (better - worse)).to(chosen.rewards)

    def describe(self) -> str:
        return f"quality targets (gamma {self.gamma:g})"
