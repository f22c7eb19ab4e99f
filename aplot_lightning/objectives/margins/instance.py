"""The instance margin: APLOT's cost of the pair itself, without transport."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns, Margin, not_negative
from aplot_lightning.transport import SimilarityTerm, check_cost_options, transport_cost
from aplot_lightning.types import Scores


class InstanceMargin(Margin):
    """Takes APLOT's cost of the pair itself as its margin, without transport: hard pairs get a larger margin.

    Formula:
        m_i = factor · C_ii, C_ii = w_r (1 - σ(|r_i⁺ - r_i⁻|)) + w_s cos(h_i⁺, h_i⁻)

    Args:
        reward_weight: w_r, at least 0.
        similarity_weight: w_s, at least 0.
        factor: scales the margin, at least 0.
        similarity_term: "similarity" takes cos, "dissimilarity" takes 1 - cos.
        detach: False lets the gradient flow through the margin into rewards and embeddings.

    When to use it: as the control of `TransportMargin`: the difference is what transport adds to a margin that follows
    the hardness of the pair itself.

    Source: APLOT (2510.10963), its cost; the ablation is ours.

    Deviations: there is no plan, so this is APLOT only for n = 1.
    """

    def __init__(
        self,
        reward_weight: float = 0.9,
        similarity_weight: float = 0.1,
        factor: float = 1.0,
        similarity_term: SimilarityTerm = "similarity",
        detach: bool = True,
    ) -> None:
        super().__init__()
        check_cost_options(reward_weight, similarity_weight, similarity_term)
        self.reward_weight = reward_weight
        self.similarity_weight = similarity_weight
        self.factor = not_negative("factor", factor)
        self.similarity_term: SimilarityTerm = similarity_term
        self.detach = detach

    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        if len(chosen) == 0:
            return torch.zeros_like(chosen.rewards)
        cost = transport_cost(
            chosen.rewards,
            rejected.rewards,
            chosen.embeddings,
            rejected.embeddings,
            reward_weight=self.reward_weight,
            similarity_weight=self.similarity_weight,
            similarity_term=self.similarity_term,
        )
        margins = self.factor * cost.diagonal()
        return margins.detach() if self.detach else margins

    def describe(self) -> str:
        return f"instance margin (w_r {self.reward_weight:g}, w_s {self.similarity_weight:g}, factor {self.factor:g})"
