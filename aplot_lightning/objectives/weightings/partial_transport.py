"""Selective learning: pairs that disagree with their neighbours are left out, by partial optimal transport."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aplot_lightning.objectives.options import not_negative
from aplot_lightning.objectives.weightings.base import Weighting
from aplot_lightning.transport import transport_cost
from aplot_lightning.types import Scores


class PartialTransport(Weighting):
    """Keeps the share of pairs whose label the model's predictions on the most similar other pairs confirm.

    Formula:
        x_i = h_i⁺ - h_i⁻, p_i = σ(Δ_i), t_i = the data's `target` or 1: features, prediction and label of pair i
        C_ij = min over the two orientations of pair j of (1 - cos(x_i, x_j)) + c |t_i - p_j|
             = min( 1 - cos(x_i, x_j) + c |t_i - p_j|,  1 + cos(x_i, x_j) + c |t_i - (1 - p_j)| )
        C_ii = B, larger than any rearrangement of the others can cost: a pair does not vouch for itself
        T = argmin ⟨T, C⟩ over T >= 0 with T 1 <= a, Tᵀ 1 <= a, Σ T = s, and a_i = w_i / Σ w
        f_i = Σ_j T_ij / (s a_i), which is n Σ_j T_ij / s for equal weights

    So rows are features-and-labels, columns features-and-predictions, and a plan of mass s < 1 leaves out the rows
    whose label is dear to explain from the predictions on similar pairs. A factor lies in [0, 1/s], most are 0 or 1/s,
    and their weighted mean is 1. Factors are detached.

    Args:
        mass: s, the share that is kept, above 0 and at most 1; 1 is no selection.
        label_cost: c, what a label that is wholly wrong costs beside feature distances in [0, 2]; at least 0.

    When to use it: noisy preferences (flipped labels) among enough pairs that each has neighbours: optimizer batches of
    64 and more. `mass` is one minus the expected share of bad labels.

    Source: after SelectiveRM (2605.06036); the construction is ours. Partial transport: Chapel, Alaya and Gasso 2020,
    exact, by POT's `ot.partial.partial_wasserstein`.

    Deviations: written from the idea, without the paper's equations: distance, orientation, the closed diagonal and the
    reading of the plan's row mass as a weight of the loss are ours. With plain labels (t = 1) and an open diagonal,
    each pair would be matched with itself, and the plan would only cut off the pairs of largest loss. Labels are the
    data's, whatever the objective's target makes of them. Among pairs that tie exactly (duplicates, equal embeddings),
    the order of the batch decides, which is the same on every split and rank.
    """

    separable = False

    def __init__(self, mass: float = 0.9, label_cost: float = 1.0) -> None:
        super().__init__()
        if not 0 < mass <= 1:
            raise ValueError(f"mass must be above 0 and at most 1, got {mass}")
        self.mass = mass
        self.label_cost = not_negative("label_cost", label_cost)

    def cost(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        """C (n, n) of n >= 1 pairs, float64 on the CPU, with the closed diagonal."""
        features = (chosen.embeddings - rejected.embeddings).detach().double().cpu()
        gaps = (chosen.rewards - rejected.rewards).detach().double().cpu()
        labels = columns["target"].double().cpu() if "target" in columns else torch.ones_like(gaps)
        cosine = transport_cost(gaps, gaps, features, features, reward_weight=0.0, similarity_weight=1.0)
        as_is = 1 - cosine + self.label_cost * (labels[:, None] - torch.sigmoid(gaps)[None, :]).abs()
        turned = 1 + cosine + self.label_cost * (labels[:, None] - torch.sigmoid(-gaps)[None, :]).abs()
        cost = torch.minimum(as_is, turned)
        return cost.fill_diagonal_(1 + len(gaps) * (2 + self.label_cost))

    @torch.no_grad()
    def forward(
        self, losses: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]
    ) -> Tensor:
        share = weights.detach().double().cpu()
        if len(losses) == 0 or share.sum() <= 0:
            return torch.ones_like(losses)
        share = share / share.sum()
        kept = partial_row_mass(self.cost(chosen, rejected, columns), share, self.mass)
        return (kept / (self.mass * share.masked_fill(share == 0, float("inf")))).to(losses)

    def describe(self) -> str:
        return f"partial-transport weighting (mass {self.mass:g}, label cost {self.label_cost:g})"


def partial_row_mass(cost: Tensor, share: Tensor, mass: float) -> Tensor:
    """What an exact partial plan leaves on each row.

    Args:
        cost: (n, n) float64 on the CPU.
        share: (n,) float64, the capacity of each row and of each column; sums to 1.
        mass: what is moved in all, above 0 and at most 1.

    Returns:
        (n,) float64, at most `share`, summing to `mass`.
    """
    from ot.partial import partial_wasserstein

    # a rounding below 1 is kept from being more than there is
    capacity = share.numpy()
    plan = partial_wasserstein(capacity, capacity, cost.numpy(), m=min(mass, float(capacity.sum())), numItermax=10**7)
    return torch.from_numpy(plan.sum(axis=1))
