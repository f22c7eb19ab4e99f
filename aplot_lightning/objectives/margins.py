"""Margins: what the loss asks of a pair's gap beyond zero."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from aplot_lightning.objectives.part import Part, required_column
from aplot_lightning.transport import (
    Reading,
    SimilarityTerm,
    check_cost_options,
    check_plan_options,
    check_reading,
    transport_cost,
    transport_margin,
    transport_plan,
)
from aplot_lightning.types import Scores

CostRewards = Literal["raw", "centered"]


class Margin(Part, ABC):
    """Base of all margins."""

    @abstractmethod
    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        """Scores of both sides of n pairs and the pairs' columns -> m (n,), in the rewards' dtype.

        The margin carries no gradient unless the part has an option `detach` and it is False.
        """


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


class InstanceMargin(Margin):
    """APLOT's cost of the pair itself, without transport: hard pairs get a larger margin.

    Formula:
        m_i = factor · C_ii, C_ii = w_r (1 - σ(|r_i⁺ - r_i⁻|)) + w_s cos(h_i⁺, h_i⁻)

    Args:
        reward_weight: w_r, at least 0.
        similarity_weight: w_s, at least 0.
        factor: scales the margin, at least 0.
        similarity_term: "similarity" takes cos, "dissimilarity" takes 1 - cos.
        detach: False lets the gradient flow through the margin into rewards and embeddings.

    When to use it: beside `TransportMargin`, to see what transport adds to a margin that follows a pair's own hardness.

    Source: APLOT (2510.10963), its cost; the ablation is ours.

    Deviations: there is no plan, so this is not APLOT except at n = 1.
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
        self.factor = _factor(factor)
        self.similarity_term: SimilarityTerm = similarity_term
        self.detach = detach

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
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


class TransportMargin(Margin):
    """APLOT: the margin comes from an entropic transport plan between the batch's chosen and rejected responses.

    Formula:
        C_ij = w_r (1 - σ(|r_i⁺ - r_j⁻|)) + w_s cos(h_i⁺, h_j⁻)
        T = argmin ⟨T, C⟩ + ε Σ T log T with uniform marginals
        m_i = factor · reading(T, C)_i, by default n Σ_j T_ij C_ij

    Args:
        reward_weight: w_r, at least 0.
        similarity_weight: w_s, at least 0. Scaling both weights and epsilon by k and the factor by 1/k changes nothing,
            so fix w_r + w_s = 1.
        epsilon: entropy weight, above 0.
        iterations: Sinkhorn iterations, at least 1.
        reading: how the margin is read from the plan: "conditional", "mass", "diagonal" or "total"
            (`aplot_lightning.transport.transport_margin`).
        factor: scales the margin, at least 0; 0 is Bradley–Terry.
        similarity_term: "similarity" takes cos, "dissimilarity" takes 1 - cos.
        rewards: which rewards enter the cost: "raw" as they are, or "centered" on their own pair's mean, so that an
            offset that a prompt gives to both of its responses does not count.
        diagonal: False keeps the plan off each chosen response's own rejected one; a batch of one pair, which has no
            other cell, keeps it. Not with the reading "diagonal".
        detach: False lets the gradient flow through the cost (never through the plan) into rewards and embeddings.

    When to use it: to ask a larger gap of pairs that the model finds hard to tell apart, judged against the whole
    optimizer batch. The batch is part of the method: `data.batch_size` matters, `data.micro_batch_size` does not.

    Source: APLOT (2510.10963), as an independent paper's appendix restates it: its reward cost follows the authors'
    release, the rest is that paper's reading (weights 0.9 and 0.1, ε 0.1, 50 iterations, log domain, detached).

    Deviations: the paper's equations and code could not be had. So reading, similarity_term, rewards and diagonal are
    options, with the appendix's choice as the default; "centered" is ours.
    """

    separable = False

    def __init__(
        self,
        reward_weight: float = 0.9,
        similarity_weight: float = 0.1,
        epsilon: float = 0.1,
        iterations: int = 50,
        reading: Reading = "conditional",
        factor: float = 1.0,
        similarity_term: SimilarityTerm = "similarity",
        rewards: CostRewards = "raw",
        diagonal: bool = True,
        detach: bool = True,
    ) -> None:
        super().__init__()
        check_cost_options(reward_weight, similarity_weight, similarity_term)
        check_plan_options(epsilon, iterations)
        check_reading(reading)
        if rewards not in get_args(CostRewards):
            raise ValueError(f"rewards must be one of {', '.join(get_args(CostRewards))}, got {rewards!r}")
        if reading == "diagonal" and not diagonal:
            raise ValueError('diagonal must be true with the reading "diagonal": every margin would be 0')
        self.reward_weight = reward_weight
        self.similarity_weight = similarity_weight
        self.epsilon = epsilon
        self.iterations = iterations
        self.reading: Reading = reading
        self.factor = _factor(factor)
        self.similarity_term: SimilarityTerm = similarity_term
        self.rewards: CostRewards = rewards
        self.diagonal = diagonal
        self.detach = detach

    def solve(self, chosen: Scores, rejected: Scores) -> tuple[Tensor, Tensor]:
        """The cost (n, n) and the plan (n, n) of n >= 1 pairs; the plan carries no gradient."""
        offset = (chosen.rewards + rejected.rewards) / 2 if self.rewards == "centered" else 0.0
        cost = transport_cost(
            chosen.rewards - offset,
            rejected.rewards - offset,
            chosen.embeddings,
            rejected.embeddings,
            reward_weight=self.reward_weight,
            similarity_weight=self.similarity_weight,
            similarity_term=self.similarity_term,
        )
        diagonal = self.diagonal or len(chosen) == 1
        return cost, transport_plan(cost, epsilon=self.epsilon, iterations=self.iterations, diagonal=diagonal)

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        if len(chosen) == 0:
            return torch.zeros_like(chosen.rewards)
        cost, plan = self.solve(chosen, rejected)
        margins = self.factor * transport_margin(cost, plan, reading=self.reading)
        return margins.detach() if self.detach else margins

    def describe(self) -> str:
        words = [
            f"w_r {self.reward_weight:g}",
            f"w_s {self.similarity_weight:g}",
            f"epsilon {self.epsilon:g}",
            f"{self.iterations} iterations",
            self.reading,
            f"factor {self.factor:g}",
        ]
        if self.similarity_term != "similarity":
            words.append(self.similarity_term)
        if self.rewards != "raw":
            words.append(f"{self.rewards} rewards")
        if not self.diagonal:
            words.append("no diagonal")
        return f"transport margin ({', '.join(words)})"


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return value


def _factor(factor: float) -> float:
    if not (math.isfinite(factor) and factor >= 0):
        raise ValueError(f"factor must be a finite number of at least 0, got {factor}")
    return factor
