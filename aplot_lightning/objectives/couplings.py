"""Couplings: which chosen response meets which rejected one inside the link."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from aplot_lightning.objectives.part import Part


class Coupling(Part, ABC):
    """Base of all couplings.

    Attributes:
        keeps_pairs: each gap is that of one pair of the data, so that the pair's margin and weight belong to it.
    """

    keeps_pairs: bool = True

    @abstractmethod
    def forward(self, chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
        """Rewards of both sides of n pairs, (n,) each -> the gaps that the link sees, (n,)."""


class Identity(Coupling):
    """Each chosen response meets the rejected one of its own pair.

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
    """Chosen rewards meet rejected ones by rank: the distribution of the former is to lie above the latter's (AOT).

    Formula:
        Δ_k = r⁺_(k) - r⁻_(k), both sides sorted

    This is optimal transport of the chosen rewards onto the rejected ones in one dimension, for any convex cost; where
    every gap is above 0, the former dominate the latter stochastically in the first order.

    When to use it: single labels are worth little (or there are no pairs: good responses here, bad ones there), while
    good responses as a whole should score above bad ones. Which response belongs to which prompt does not count. The
    optimizer batch is part of the method.

    Source: AOT (2406.05882), its unpaired alignment, with rewards in place of log-ratios.

    Deviations: the paper's losses are of a policy; here the link is free (its logistic one is the default). Exact
    sorting, not a soft one. What belongs to single pairs has no place here: their margins, targets and weightings are
    refused, their weights unused.
    """

    keeps_pairs = False
    separable = False

    def forward(self, chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
        return chosen_rewards.sort(stable=True).values - rejected_rewards.sort(stable=True).values

    def describe(self) -> str:
        return "sorted"
