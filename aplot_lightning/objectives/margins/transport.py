"""APLOT's margin: each pair's cost under a transport plan between chosen and rejected responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from aplot_lightning.objectives.margins.base import Margin
from aplot_lightning.objectives.margins.queue import RejectedQueue
from aplot_lightning.objectives.options import not_negative
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
Support = Literal["batch", "queue"]


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
        support: what the chosen responses are transported onto. "batch" takes the rejected responses of the whole
            optimizer batch, exactly, on any split. "queue", the cheaper mode, takes those of the micro-batch and a
            queue of recent detached ones, with equal mass on each; not with the reading "diagonal" or diagonal=False,
            which need a square cost.
        queue_size: rejected responses that the queue holds, at least 1; unused with "batch".

    When to use it: to ask a larger gap of pairs that the model finds hard to tell apart, judged against the whole
    optimizer batch. The batch is part of the method: `data.batch_size` matters, `data.micro_batch_size` does not. With
    "queue" there is one pass over each micro-batch and a step costs what Bradley–Terry's costs, but the result is not
    exact: it depends on the micro-batches, their order and the ranks, and the queued responses come from older weights.

    The queue: it is state (saved in checkpoints, empty at first). It advances by a micro-batch's rejected responses
    after that micro-batch's margins, only in training and only when gradients are on: the objective's second call, for
    the log and without gradients, leaves it alone, and that call and `solve` after a step see a queue that holds the
    step's own responses already. Nothing is exchanged between ranks here: each fills its own queue within a step. DDP
    by its default (broadcast_buffers) copies rank 0's to all at the start of every step, so that a resumed run is the
    undisturbed one; with broadcast_buffers=False queues stay apart, but only rank 0's is in the checkpoint.

    Source: APLOT (2510.10963), as an independent paper's appendix restates it: its reward cost follows the authors'
    release, the rest is that paper's reading (weights 0.9 and 0.1, ε 0.1, 50 iterations, log domain, detached).

    Deviations: the paper's equations and code could not be had. So reading, similarity_term, rewards and diagonal are
    options, with the appendix's choice as the default; "centered" and the queue are ours.
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
        support: Support = "batch",
        queue_size: int = 256,
    ) -> None:
        super().__init__()
        check_cost_options(reward_weight, similarity_weight, similarity_term)
        check_plan_options(epsilon, iterations)
        check_reading(reading)
        if rewards not in get_args(CostRewards):
            raise ValueError(f"rewards must be one of {', '.join(get_args(CostRewards))}, got {rewards!r}")
        if reading == "diagonal" and not diagonal:
            raise ValueError('diagonal must be true with the reading "diagonal": every margin would be 0')
        _check_support(support, queue_size, reading, diagonal)
        self.reward_weight = reward_weight
        self.similarity_weight = similarity_weight
        self.epsilon = epsilon
        self.iterations = iterations
        self.reading: Reading = reading
        self.factor = not_negative("factor", factor)
        self.similarity_term: SimilarityTerm = similarity_term
        self.rewards: CostRewards = rewards
        self.diagonal = diagonal
        self.detach = detach
        self.support: Support = support
        self.queue_size = queue_size
        self.queue = RejectedQueue(queue_size) if support == "queue" else None
        self.separable = support == "queue"

    def solve(self, chosen: Scores, rejected: Scores) -> tuple[Tensor, Tensor]:
        """The cost and the plan of n >= 1 pairs; the plan carries no gradient, and the queue stays as it is.

        Both are (n, n), and with a queue of q responses (n, n + q): the pairs' own rejected responses come first.
        """
        chosen_rewards, rejected_rewards = self._cost_rewards(chosen, rejected)
        rejected_embeddings = rejected.embeddings
        if self.queue is not None and (queued := self.queue.contents())[0].numel() > 0:
            rejected_rewards = torch.cat([rejected_rewards, queued[0].to(rejected_rewards)])
            rejected_embeddings = torch.cat([rejected_embeddings, queued[1].to(rejected_embeddings)])
        cost = transport_cost(
            chosen_rewards,
            rejected_rewards,
            chosen.embeddings,
            rejected_embeddings,
            reward_weight=self.reward_weight,
            similarity_weight=self.similarity_weight,
            similarity_term=self.similarity_term,
        )
        diagonal = self.diagonal or len(chosen) == 1
        return cost, transport_plan(cost, epsilon=self.epsilon, iterations=self.iterations, diagonal=diagonal)

    def _cost_rewards(self, chosen: Scores, rejected: Scores) -> tuple[Tensor, Tensor]:
        """The rewards that enter the cost, (n,) for each side."""
        if self.rewards == "raw":
            return chosen.rewards, rejected.rewards
        offset = (chosen.rewards + rejected.rewards) / 2
        return chosen.rewards - offset, rejected.rewards - offset

    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        if len(chosen) == 0:
            return torch.zeros_like(chosen.rewards)
        cost, plan = self.solve(chosen, rejected)
        margins = self.factor * transport_margin(cost, plan, reading=self.reading)
        if self.queue is not None and self.training and torch.is_grad_enabled():
            self.queue.push(self._cost_rewards(chosen, rejected)[1], rejected.embeddings)
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
        if self.support == "queue":
            words.append(f"queue of {self.queue_size}")
        return f"transport margin ({', '.join(words)})"


def _check_support(support: str, queue_size: int, reading: str, diagonal: bool) -> None:
    if support not in get_args(Support):
        raise ValueError(f"support must be one of {', '.join(get_args(Support))}, got {support!r}")
    if not isinstance(queue_size, int) or queue_size < 1:
        raise ValueError(f"queue_size must be a whole number of at least 1, got {queue_size}")
    if support == "queue" and reading == "diagonal":
        raise ValueError('reading must be conditional, mass or total with support "queue", whose cost is not square')
    if support == "queue" and not diagonal:
        raise ValueError('diagonal must be true with support "queue", whose cost is not square')
