"""APLOT's margin: each pair's cost under a transport plan between chosen and rejected responses."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns, Margin, not_negative
from aplot_lightning.objectives.margins.queue import RejectedQueue
from aplot_lightning.transport import (
    Reading,
    SimilarityTerm,
    check_choice,
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
    """Reads the margin from an entropic transport plan between the chosen and the rejected responses (APLOT).

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
        rewards: which rewards enter the cost: "raw" unchanged, or "centered" on the mean of their pair, which removes
            an offset that a prompt adds to both of its responses.
        diagonal: False forbids the plan to match a chosen response with the rejected one of its own pair (a batch of
            one pair has no other cell and ignores this). Not allowed with the reading "diagonal".
        detach: False lets the gradient flow through the cost, never through the plan, into rewards and embeddings.
        support: what the chosen responses are transported onto. "batch" uses the rejected responses of the whole
            optimizer batch, exactly, for any split. "queue", the cheaper mode, uses those of the micro-batch and a
            queue of recent detached ones, with equal mass on each. It excludes the reading "diagonal" and
            diagonal=False, which need a square cost.
        queue_size: rejected responses in the queue, at least 1; unused with "batch".

    When to use it: to ask for a larger gap where the model cannot tell the responses apart, measured against the whole
    optimizer batch. The batch is part of the method: `data.batch_size` matters, `data.micro_batch_size` does not. With
    "queue" one pass over each micro-batch is enough and a step costs as much as with Bradley–Terry, but the result is
    not exact: it depends on the micro-batches, their order and the ranks, and the queued responses come from older
    weights. docs/method.md, section 2, lists what to know before trusting this margin.

    The queue: it starts empty and is saved in checkpoints. After the margins of a micro-batch are computed, its
    rejected responses are added, but only in training mode with gradients enabled. A call without gradients (for
    logging) leaves the queue unchanged; such a call, or `solve`, after a step already sees that step's own responses.
    Each rank fills its own queue within a step. DDP copies rank 0's queue to all ranks at the start of every step
    (broadcast_buffers, its default), so a resumed run equals an uninterrupted one. With broadcast_buffers=False the
    queues differ, and only rank 0's is in the checkpoint.

    Source: APLOT (2510.10963), as restated in the appendix of an independent paper: the reward cost follows the
    authors' release, the rest is that paper's reading (weights 0.9 and 0.1, ε 0.1, 50 iterations, log domain,
    detached).

    Deviations: the paper's equations and code were not available to us. Therefore reading, similarity_term, rewards and
    diagonal are options whose defaults follow the appendix; "centered" and the queue are ours.
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
        check_choice("rewards", rewards, get_args(CostRewards))
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
        """The cost and the plan of n >= 1 pairs; the plan carries no gradient and the queue does not change.

        Both are (n, n), or (n, n + q) with q queued responses, after the rejected responses of the pairs themselves.
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

    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        if len(chosen) == 0:
            return torch.zeros_like(chosen.rewards)
        cost, plan = self.solve(chosen, rejected)
        margins = self.factor * transport_margin(cost, plan, reading=self.reading)
        if self.queue is not None and self.training and torch.is_grad_enabled():
            self.queue.push(self._cost_rewards(chosen, rejected)[1], rejected.embeddings)
        return margins.detach() if self.detach else margins

    def describe(self) -> str:
        options = [
            f"w_r {self.reward_weight:g}",
            f"w_s {self.similarity_weight:g}",
            f"epsilon {self.epsilon:g}",
            f"{self.iterations} iterations",
            self.reading,
            f"factor {self.factor:g}",
        ]
        if self.similarity_term != "similarity":
            options.append(self.similarity_term)
        if self.rewards != "raw":
            options.append(f"{self.rewards} rewards")
        if not self.diagonal:
            options.append("no diagonal")
        if self.support == "queue":
            options.append(f"queue of {self.queue_size}")
        return f"transport margin ({', '.join(options)})"


def _check_support(support: str, queue_size: int, reading: str, diagonal: bool) -> None:
    check_choice("support", support, get_args(Support))
    if not isinstance(queue_size, int) or queue_size < 1:
        raise ValueError(f"queue_size must be a whole number of at least 1, got {queue_size}")
    if support == "queue" and reading == "diagonal":
        raise ValueError('reading must be conditional, mass or total with support "queue", whose cost is not square')
    if support == "queue" and not diagonal:
        raise ValueError('diagonal must be true with support "queue", whose cost is not square')
