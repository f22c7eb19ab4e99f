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
