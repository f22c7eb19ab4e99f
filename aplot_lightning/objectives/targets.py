"""Targets: the probability t in [0, 1] that each pair's chosen response is preferred."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns, Target, positive, required_column
from aplot_lightning.transport import at_least_float32
from aplot_lightning.types import Scores


class ColumnTarget(Target):
    """The `target` column of the data, or 1 for every pair if the data has none.

    Formula:
        t_i = target_i, or 1 without the column

    When to use it: the default. Soft preferences (shares of votes, a judge's probabilities) are used unchanged.

    Source: soft labels of Bradley–Terry, as in cDPO; docs/method.md, section 3.

    Deviations: none.
    """

    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        if "target" not in columns:
            return torch.ones_like(chosen.rewards)
        return columns["target"].to(chosen.rewards)

    def describe(self) -> str:
        return ""


class HardTarget(Target):
    """The side that the data prefers, without the strength of the preference.

    Formula:
        t_i = (1 + sign(2 target_i - 1)) / 2, or 1 without the column; a target of 1/2 stays 1/2

    When to use it: to measure what soft targets add, or if their strength is unreliable.

    Source: Bradley–Terry with hard labels.

    Deviations: none.
    """

    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        if "target" not in columns:
            return torch.ones_like(chosen.rewards)
        target = at_least_float32(columns["target"])
        return ((1 + torch.sign(2 * target - 1)) / 2).to(chosen.rewards)

    def describe(self) -> str:
        return "hard targets"


class LabelSmoothing(Target):
    """Assumes that each label is wrong with probability alpha.

    Formula:
        t_i = (1 - α) target_i + α (1 - target_i), which is 1 - α for a plain pair

    Args:
        alpha: α, at least 0 and below 0.5.

    When to use it: noisy labels, or rewards that grow without bound on pairs that are already right.

    Source: label smoothing as the GRM paper's baseline (2406.10216, section 4) with α = 0.1; cDPO.

    Deviations: a soft target of the data is smoothed too, not replaced.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must be at least 0 and below 0.5, got {alpha}")
        self.alpha = alpha
        self.labels = ColumnTarget()

    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        return self.alpha + (1 - 2 * self.alpha) * self.labels(chosen, rejected, columns)

    def describe(self) -> str:
        return f"label smoothing {self.alpha:g}"


class Quality(Target):
    """The target is computed from quality scores, so that a near tie counts less than a clear preference (MMPO).

    Formula:
        t_i = σ(γ (s_i⁺ - s_i⁻))

    Args:
        gamma: γ, above 0, in units of one over the scores' unit; tune it for the data and the model.

    When to use it: both sides of a pair have scores (ratings, or a judge's) whose difference tells how certain the
    preference is. The gap is then trained towards γ times the difference of the scores.

    Source: MMPO (2410.03145); its code has γ = 2.2, 1.1 and 0.3 for its data and models.

    Deviations: the default is the middle one of these values. A `target` column of the data is ignored.
    """

    columns = ("chosen_score", "rejected_score")

    def __init__(self, gamma: float = 1.1) -> None:
        super().__init__()
        self.gamma = positive("gamma", gamma)

    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        better, worse = (at_least_float32(required_column(columns, name, "Quality")) for name in self.columns)
        return torch.sigmoid(self.gamma * (better - worse)).to(chosen.rewards)

    def describe(self) -> str:
        return f"quality targets (gamma {self.gamma:g})"
