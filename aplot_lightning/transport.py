"""Entropic optimal transport between the chosen and the rejected responses of a batch: cost, plan, margin.

Pure tensor functions after APLOT (arXiv 2510.10963); docs/method.md, section 2, has the formulas and their sources:

    cost = transport_cost(chosen_rewards, rejected_rewards, chosen_embeddings, rejected_embeddings)   # (n, m)
    plan = transport_plan(cost)                                                                       # (n, m)
    margins = transport_margin(cost, plan)                                                            # (n,)

Precision: everything runs in float32, or in float64 if an input is float64, with autocast off. bfloat16 and float16
inputs are promoted first.

Errors are ValueErrors that name the argument and the allowed values. NaN and infinite values are rejected on the CPU.
On an accelerator this check would make the host wait for the device at every step. There a NaN propagates through plan
and margin into the loss, which the training loop checks once.
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
    """The cost of moving chosen response i onto rejected response j; high if the model cannot tell the two apart.

    .. math:: C_{ij} = w_r (1 - σ(|r_i^+ - r_j^-|)) + w_s \\cos(h_i^+, h_j^-)

    Source: APLOT (2510.10963) as restated in an independent paper's appendix. The authors' code is not public, so the
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
        ValueError: shapes do not match, a value is NaN or infinite (CPU), or an option is out of range.
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
    iteration without POT's convergence test, which would make the host wait every ten iterations. Both run exactly
    `iterations` iterations, which end on the rows: the columns are exact up to `marginal_error(plan)`.

    Args:
        cost: (n, m), n, m >= 1.
        epsilon: entropy weight, above 0.
        iterations: at least 1.
        diagonal: False puts no mass on the cells (i, i), so that no response is moved onto the other side of its own
            pair. Needs n = m >= 2.

    Returns:
        (n, m), float64 for float64 costs, else float32; rows sum to 1/n. The plan carries no gradient.

    Raises:
        ValueError: the cost is not a matrix, contains NaN or infinite values (CPU), or is not square but must be; or an
            option is out of range.
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
        # The last half-iteration scales the rows. As a softmax it is exact in float32 even at epsilon 1e-4, where
        # exp(u + v - C / epsilon) would lose 6e-4 of the mass.
        return torch.softmax(potential - cost / epsilon, dim=1) / cost.shape[0]


def transport_margin(cost: Tensor, plan: Tensor, *, reading: Reading = "conditional") -> Tensor:
    """The margin of every chosen response, read from the plan in one of four ways (the source does not specify it).

    - ``conditional``: n Σ_j T_ij C_ij, the expected cost of row i under its own conditional plan.
    - ``mass``: Σ_j T_ij C_ij, the plain row sum; it shrinks as 1/n.
    - ``diagonal``: n T_ii C_ii, what the plan leaves on the pair itself; it shrinks with n too. Needs n = m.
    - ``total``: ⟨T, C⟩, the transport cost of the whole batch, the same for every row.

    Args:
        cost: (n, m).
        plan: (n, m), from `transport_plan(cost)`; treated as a constant, so no gradient flows into it.
        reading: one of the four.

    Returns:
        (n,), differentiable in `cost`.

    Raises:
        ValueError: the reading is unknown, the shapes differ, a value is NaN or infinite (CPU), or the reading is
            "diagonal" and the cost is not square.
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
    """The largest error of a plan's marginals: the maximum of |row sum - 1/n| and |column sum - 1/m|, a scalar.

    The rows of `transport_plan` are exact, so for its plans this is the error of the columns: 0 at convergence.
    """
    _check_matrix("plan", plan)
    plan = at_least_float32(plan.detach())
    rows = (plan.sum(dim=1) - 1 / plan.shape[0]).abs().max()
    columns = (plan.sum(dim=0) - 1 / plan.shape[1]).abs().max()
    return torch.maximum(rows, columns)


def plan_entropy(plan: Tensor) -> Tensor:
    """-Σ T log T of a plan (n, m) in nats, a scalar: log(n m) for a uniform plan, log n for a permutation."""
    _check_matrix("plan", plan)
    return torch.special.entr(at_least_float32(plan.detach())).sum()


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32; a float64 tensor is returned unchanged."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast is off on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_cost_options(reward_weight: float, similarity_weight: float, similarity_term: str) -> None:
    """Raises ValueError if `transport_cost` does not accept these options."""
    for name, weight in (("reward_weight", reward_weight), ("similarity_weight", similarity_weight)):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {weight}")
    check_choice("similarity_term", similarity_term, get_args(SimilarityTerm))


def check_plan_options(epsilon: float, iterations: int) -> None:
    """Raises ValueError if `transport_plan` does not accept these options."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be a finite number above 0, got {epsilon}")
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be a whole number of at least 1, got {iterations}")


def check_reading(reading: str) -> None:
    """Raises ValueError if `transport_margin` does not know this reading."""
    check_choice("reading", reading, get_args(Reading))


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError, naming the argument and the allowed values, if the value is not one of them."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _column_potential_pot(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """log v (m,) as in `_column_potential`, by POT; a threshold of 0 never stops early."""
    # Imported here because it takes half a second (scipy, networkx), which other objectives do not need.
    from ot.bregman import sinkhorn_log

    rows, columns = cost.shape
    uniform = (cost.new_full((rows,), 1 / rows), cost.new_full((columns,), 1 / columns))
    _, log = sinkhorn_log(*uniform, cost, epsilon, numItermax=iterations, stopThr=0, log=True, warn=False)
    return log["log_v"]


def _column_potential(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """log v (m,) after `iterations` Sinkhorn iterations (columns, then rows) from log u = 0, without any device sync.

    The caller computes the row potential of the last iteration as a softmax over the rows.
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
    """Checks on the CPU only; the module docstring says why."""
    if tensor.device.type == "cpu" and not torch.isfinite(tensor).all():
        raise NotFiniteError(f"{name} must be finite, got NaN or infinite values")
