"""Entropic optimal transport between the chosen and the rejected responses of a batch: cost, plan, margin.

Pure tensor functions (APLOT, arXiv 2510.10963; the reading of it is written down in each function):

    cost = transport_cost(chosen_rewards, rejected_rewards, chosen_embeddings, rejected_embeddings)   # (n, m)
    plan = transport_plan(cost)                                                                       # (n, m)
    margins = transport_margin(cost, plan)                                                            # (n,)

Precision: everything runs in float32 or, where an input is float64, in float64, with autocast off; bfloat16 and float16
inputs are promoted before anything is computed from them.

Refusals are ValueErrors that name the argument and what it may be. NaN and infinite values are refused on the CPU. On
an accelerator the test would make the host wait for the device at every step, so there a NaN travels on through plan
and margin into the loss, where a training loop looks once.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from aplot_lightning.errors import NotFiniteError

SimilarityTerm = Literal["similarity", "dissimilarity"]
Reading = Literal["conditional", "mass", "diagonal", "total"]


def transport_cost(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    chosen_embeddings: Tensor,
    rejected_embeddings: Tensor,
    *,
    reward_weight: float = 0.9,
    similarity_weight: float = 0.1,
    similarity_term: SimilarityTerm = "similarity",
) -> Tensor:
    """What it costs to move chosen response i onto rejected response j: high where the model cannot tell them apart.

    .. math:: C_{ij} = w_r (1 - σ(|r_i^+ - r_j^-|)) + w_s \\cos(h_i^+, h_j^-)

    Source: APLOT (2510.10963) as an independent paper's appendix restates it; the authors' code is not public, so the
    sign of the similarity term is an option. The cosine with a zero vector is 0.

    Args:
        chosen_rewards: (n,), n >= 1.
        rejected_rewards: (m,), m >= 1.
        chosen_embeddings: (n, d).
        rejected_embeddings: (m, d).
        reward_weight: w_r, at least 0.
        similarity_weight: w_s, at least 0.
        similarity_term: "similarity" takes cos, "dissimilarity" takes 1 - cos.

    Returns:
        (n, m), differentiable in all four tensors.

    Raises:
        ValueError: shapes that do not fit, a NaN or infinite value (CPU), or an option out of range.
    """
    check_cost_options(reward_weight, similarity_weight, similarity_term)
    _check_side("chosen", chosen_rewards, chosen_embeddings)
    _check_side("rejected", rejected_rewards, rejected_embeddings)
    if chosen_embeddings.shape[1] != rejected_embeddings.shape[1]:
        raise ValueError(
            "chosen_embeddings and rejected_embeddings must have the same width, "
            f"got {chosen_embeddings.shape[1]} and {rejected_embeddings.shape[1]}"
        )
    with without_autocast(chosen_rewards):
        inputs = (chosen_rewards, rejected_rewards, chosen_embeddings, rejected_embeddings)
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in inputs) else torch.float32
        r_chosen, r_rejected, h_chosen, h_rejected = (tensor.to(dtype) for tensor in inputs)
        # sigmoid(-x) is 1 - sigmoid(x) without its cancellation.
        reward_cost = torch.sigmoid(-(r_chosen[:, None] - r_rejected[None, :]).abs())
        cosine = _unit(h_chosen) @ _unit(h_rejected).T
        similarity_cost = cosine if similarity_term == "similarity" else 1 - cosine
        return reward_weight * reward_cost + similarity_weight * similarity_cost


def transport_plan(cost: Tensor, *, epsilon: float = 0.1, iterations: int = 50, diagonal: bool = True) -> Tensor:
    """The entropic transport plan between uniform marginals after a fixed number of Sinkhorn iterations.

    .. math:: T = \\arg\\min_T ⟨T, C⟩ + ε \\sum T \\log T, \\quad T 1 = 1/n, \\; T^⊤ 1 = 1/m

    Log-domain Sinkhorn (Cuturi 2013; Feydy et al. 2019): POT's ``sinkhorn_log`` on the CPU; on an accelerator the same
    iteration without POT's convergence test, which would make the host wait every ten iterations. Exactly `iterations`
    are done on both. They end on the rows, so the columns are exact up to `marginal_error(plan)`.

    Args:
        cost: (n, m), n, m >= 1.
        epsilon: entropy weight, above 0.
        iterations: at least 1.
        diagonal: False keeps all mass off the cells (i, i): no response is moved onto its own pair's other side.
            Needs n = m >= 2.

    Returns:
        (n, m), float64 for float64 costs and float32 else; rows sum to 1/n. It carries no gradient: the plan is held
        fixed.

    Raises:
        ValueError: a cost that is not a matrix, holds a NaN or infinite value (CPU), or is not square where that is
            needed; an option out of range.
    """
    check_plan_options(epsilon, iterations)
    _check_matrix("cost", cost)
    if not diagonal and (cost.shape[0] != cost.shape[1] or cost.shape[0] < 2):
        raise ValueError(f"diagonal=False needs a square cost of at least 2 x 2, got shape {tuple(cost.shape)}")
    with torch.no_grad(), without_autocast(cost):
        cost = at_least_float32(cost)
        _check_finite(f"cost / epsilon (epsilon {epsilon:g})", cost / epsilon)
        if not diagonal:
            cost = cost.clone().fill_diagonal_(math.inf)
        solve = _column_potential_pot if cost.device.type == "cpu" else _column_potential
        potential = solve(cost, epsilon, iterations)
        # The last half-iteration, which scales the rows, written as a softmax: rows are then exact also in float32 at
        # epsilon 1e-4, where exp(u + v - C / epsilon) would lose 6e-4 of their mass.
        return torch.softmax(potential - cost / epsilon, dim=1) / cost.shape[0]


def transport_margin(cost: Tensor, plan: Tensor, *, reading: Reading = "conditional") -> Tensor:
    """The margin of every chosen response, read from the plan in one of four ways (the source does not say which).

    - ``conditional``: n Σ_j T_ij C_ij, the expected cost of row i under its own conditional plan.
    - ``mass``: Σ_j T_ij C_ij, the plain row sum; it shrinks as 1/n.
    - ``diagonal``: n T_ii C_ii, what the plan leaves on the pair itself; it shrinks with n too. Needs n = m.
    - ``total``: ⟨T, C⟩, the transport cost of the whole batch, the same for every row.

    Args:
        cost: (n, m).
        plan: (n, m), from `transport_plan(cost)`; held fixed, so no gradient flows into it.
        reading: one of the four.

    Returns:
        (n,), differentiable in `cost`.

    Raises:
        ValueError: an unknown reading, shapes that differ, a NaN or infinite value (CPU), or "diagonal" of a cost that
            is not square.
    """
    check_reading(reading)
    _check_matrix("cost", cost)
    _check_matrix("plan", plan)
    if cost.shape != plan.shape:
        raise ValueError(f"cost and plan must have the same shape, got {tuple(cost.shape)} and {tuple(plan.shape)}")
    rows = cost.shape[0]
    if reading == "diagonal" and rows != cost.shape[1]:
        raise ValueError(f'reading "diagonal" needs a square cost, got shape {tuple(cost.shape)}')
    with without_autocast(cost):
        moved = at_least_float32(plan.detach()) * at_least_float32(cost)
        if reading == "conditional":
            return rows * moved.sum(dim=1)
        if reading == "mass":
            return moved.sum(dim=1)
        if reading == "diagonal":
            return rows * moved.diagonal()
        return moved.sum().expand(rows)


def marginal_error(plan: Tensor) -> Tensor:
    """How far a plan (n, m) is from its marginals: the largest of |row sum - 1/n| and |column sum - 1/m|, a scalar.

    The rows of `transport_plan` are exact, so for its plans this is the error of the columns: 0 at convergence.
    """
    _check_matrix("plan", plan)
    plan = at_least_float32(plan.detach())
    rows = (plan.sum(dim=1) - 1 / plan.shape[0]).abs().max()
    columns = (plan.sum(dim=0) - 1 / plan.shape[1]).abs().max()
    return torch.maximum(rows, columns)


def plan_entropy(plan: Tensor) -> Tensor:
    """-Σ T log T of a plan (n, m) in nats, a scalar: log(n m) where uniform, log n where a permutation."""
    _check_matrix("plan", plan)
    return torch.special.entr(at_least_float32(plan.detach())).sum()


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast is off on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_cost_options(reward_weight: float, similarity_weight: float, similarity_term: str) -> None:
    """Raise ValueError where `transport_cost` would refuse these options."""
    for name, weight in (("reward_weight", reward_weight), ("similarity_weight", similarity_weight)):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {weight}")
    _check_choice("similarity_term", similarity_term, get_args(SimilarityTerm))


def check_plan_options(epsilon: float, iterations: int) -> None:
    """Raise ValueError where `transport_plan` would refuse these options."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be a finite number above 0, got {epsilon}")
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be a whole number of at least 1, got {iterations}")


def check_reading(reading: str) -> None:
    """Raise ValueError where `transport_margin` does not know this reading."""
    _check_choice("reading", reading, get_args(Reading))


def _column_potential_pot(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """log v (m,) of `_column_potential` by POT; the threshold of 0 never stops it early."""
    # Imported here because it takes half a second (scipy, networkx) that no other objective should pay.
    from ot.bregman import sinkhorn_log

    rows, columns = cost.shape
    uniform = (cost.new_full((rows,), 1 / rows), cost.new_full((columns,), 1 / columns))
    _, log = sinkhorn_log(*uniform, cost, epsilon, numItermax=iterations, stopThr=0, log=True, warn=False)
    return log["log_v"]


def _column_potential(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """log v (m,) after `iterations` Sinkhorn iterations (columns, then rows) from log u = 0, without any device sync.

    The row potential that ends the last iteration is left to the caller: it is the softmax over the rows.
    """
    rows, columns = cost.shape
    kernel = -cost / epsilon
    u = cost.new_zeros(rows)
    v = cost.new_zeros(columns)
    for _ in range(iterations):
        v = -math.log(columns) - torch.logsumexp(kernel + u[:, None], dim=0)
        u = -math.log(rows) - torch.logsumexp(kernel + v[None, :], dim=1)
    return v


def _unit(embeddings: Tensor) -> Tensor:
    """Rows (n, d) scaled to length 1; a zero row stays zero, and so does its gradient."""
    norm = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    return embeddings / norm.masked_fill(norm == 0, math.inf)


def _check_side(side: str, rewards: Tensor, embeddings: Tensor) -> None:
    if rewards.dim() != 1 or rewards.shape[0] == 0:
        raise ValueError(f"{side}_rewards must have shape (n,) with n >= 1, got {tuple(rewards.shape)}")
    if embeddings.dim() != 2 or embeddings.shape[0] != rewards.shape[0] or embeddings.shape[1] == 0:
        raise ValueError(
            f"{side}_embeddings must have shape ({rewards.shape[0]}, d), one row for each of {side}_rewards, "
            f"got {tuple(embeddings.shape)}"
        )
    _check_finite(f"{side}_rewards", rewards)
    _check_finite(f"{side}_embeddings", embeddings)


def _check_matrix(name: str, matrix: Tensor) -> None:
    if matrix.dim() != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must have shape (n, m) with n, m >= 1, got {tuple(matrix.shape)}")
    _check_finite(name, matrix)


def _check_finite(name: str, tensor: Tensor) -> None:
    """On the CPU only: see the module's docstring."""
    if tensor.device.type == "cpu" and not torch.isfinite(tensor).all():
        raise NotFiniteError(f"{name} must be finite, got NaN or infinite values")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
