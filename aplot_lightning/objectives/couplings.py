"""Couplings: which chosen response is compared with which rejected response inside the link."""

from __future__ import annotations

from torch import Tensor

from aplot_lightning.objectives.component import Coupling


class Identity(Coupling):
    """Compares each chosen response with the rejected response of its own pair.

    Formula:
        Δ_i = r_i⁺ - r_i⁻

    When to use it: the default.

    Source: Bradley and Terry 1952.

    Deviations: none.
    """

    def forward(self, chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
        return chosen_rewards - rejected_rewards

    def describe(self) -> str:
        return ""


class Sorted(Coupling):
    """Compares chosen and rejected rewards by rank, so that the chosen distribution lies above the rejected one (AOT).

    Formula:
        Δ_k = r⁺_(k) - r⁻_(k), both sides sorted

    This is optimal transport of the chosen rewards onto the rejected ones in one dimension, for any convex cost. If
    every gap is above 0, the chosen rewards dominate the rejected ones stochastically in the first order.

    When to use it: good responses as a whole should score above bad ones, and single labels are unreliable or there
    are no pairs at all. Which response belongs to which prompt does not matter. The optimizer batch is part of the
    method.

    Source: AOT (2406.05882), its unpaired alignment, with rewards in place of log-ratios.

    Deviations: the paper trains a policy; here any link may be used (the logistic one by default). The sorting is
    exact, not soft. Margins, targets and weightings that belong to single pairs are rejected; the weights of single
    pairs are ignored.
    """

    keeps_pairs = False
    separable = False

    def forward(self, chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
        return chosen_rewards.sort(stable=True).values - rejected_rewards.sort(stable=True).values

    def describe(self) -> str:
        return "sorted"
