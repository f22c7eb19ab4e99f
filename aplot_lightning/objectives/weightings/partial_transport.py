"""Selective learning: partial optimal transport leaves out pairs that disagree with their neighbors."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns, Weighting, not_negative
from aplot_lightning.transport import transport_cost
from aplot_lightning.types import Scores


class PartialTransport(Weighting):
    """Keeps the share of pairs whose labels agree with the model's predictions on the most similar other pairs.

    Formula:
        x_i = h_i⁺ - h_i⁻, p_i = σ(Δ_i), t_i = the data's `target` or 1: features, prediction and label of pair i
        C_ij = min over the two orientations of pair j of (1 - cos(x_i, x_j)) + c |t_i - p_j|
             = min( 1 - cos(x_i, x_j) + c |t_i - p_j|,  1 + cos(x_i, x_j) + c |t_i - (1 - p_j)| )
        C_ii = B, larger than any rearrangement of the others can cost: a pair cannot confirm itself
        T = argmin ⟨T, C⟩ over T >= 0 with T 1 <= a, Tᵀ 1 <= a, Σ T = s, and a_i = w_i / Σ w
        f_i = Σ_j T_ij / (s a_i), which is n Σ_j T_ij / s for equal weights

    Rows are features with labels, columns are features with predictions. A plan of mass s < 1 leaves out the rows whose
    labels are expensive to explain by the predictions on similar pairs. A factor lies in [0, 1/s], most are 0 or 1/s,
    and their weighted mean is 1. Factors are detached.

    Args:
        mass: s, the share of pairs to keep, above 0 and at most 1; 1 selects nothing.
        label_cost: c, the cost of a completely wrong label; at least 0. Feature distances lie in [0, 2].

    When to use it: noisy preferences (flipped labels), with optimizer batches of 64 or more, so that each pair has
    neighbors. Set `mass` to one minus the expected share of wrong labels.

    Source: after SelectiveRM (2605.06036); the construction is ours. Partial transport: Chapel, Alaya and Gasso 2020,
    exact, by POT's `ot.partial.partial_wasserstein`.

    Deviations: written from the idea, without the paper's equations. Distance, orientation, the closed diagonal and the
    use of the plan's row mass as a weight of the loss are ours. With plain labels (t = 1) and an open diagonal, each
    pair would be matched with itself, and the plan would only drop the pairs with the largest loss. Labels are those
    of the data, whatever the objective's target. Exact ties (duplicates, equal embeddings) are resolved by the order
    of the batch, which is the same for every split and rank.
    """

    separable = False

    def __init__(self, mass: float = 0.9, label_cost: float = 1.0) -> None:
        super().__init__()
        if not 0 < mass <= 1:
            raise ValueError(f"mass must be above 0 and at most 1, got {mass}")
        self.mass = mass
        self.label_cost = not_negative("label_cost", label_cost)

    def cost(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        """The cost C (n, n) of n >= 1 pairs, float64 on the CPU, with the closed diagonal."""
        features = (chosen.embeddings - rejected.embeddings).detach().double().cpu()
        gaps = (chosen.rewards - rejected.rewards).detach().double().cpu()
        labels = columns["target"].double().cpu() if "target" in columns else torch.ones_like(gaps)
        cosine = transport_cost(gaps, gaps, features, features, reward_weight=0.0, similarity_weight=1.0)
        as_is = 1 - cosine + self.label_cost * (labels[:, None] - torch.sigmoid(gaps)[None, :]).abs()
        turned = 1 + cosine + self.label_cost * (labels[:, None] - torch.sigmoid(-gaps)[None, :]).abs()
        cost = torch.minimum(as_is, turned)
        return cost.fill_diagonal_(1 + len(gaps) * (2 + self.label_cost))

    @torch.no_grad()
    def forward(self, losses: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        share = weights.detach().double().cpu()
        if len(losses) == 0 or share.sum() <= 0:
            return torch.ones_like(losses)
        share = share / share.sum()
        kept = partial_row_mass(self.cost(chosen, rejected, columns), share, self.mass)
        return (kept / (self.mass * share.masked_fill(share == 0, float("inf")))).to(losses)

    def describe(self) -> str:
        return f"partial-transport weighting (mass {self.mass:g}, label cost {self.label_cost:g})"


def partial_row_mass(cost: Tensor, share: Tensor, mass: float) -> Tensor:
    """The mass that an exact partial plan assigns to each row.

    Args:
        cost: (n, n) float64 on the CPU.
        share: (n,) float64, the capacity of each row and of each column; sums to 1.
        mass: the total mass to move, above 0 and at most 1.

    Returns:
        (n,) float64, at most `share`, summing to `mass`.
    """
    from ot.partial import partial_wasserstein

    # The capacities may sum to slightly less than 1, and POT rejects a mass above their sum.
    capacity = share.numpy()
    plan = partial_wasserstein(capacity, capacity, cost.numpy(), m=min(mass, float(capacity.sum())), numItermax=10**7)
    return torch.from_numpy(plan.sum(axis=1))
