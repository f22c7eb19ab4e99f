"""Transport against POT, against slow loops in numpy, and against the properties that define it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from aplot_lightning.transport import (
    _column_potential,
    _column_potential_pot,
    marginal_error,
    plan_entropy,
    transport_cost,
    transport_margin,
    transport_plan,
)

READINGS = ("conditional", "mass", "diagonal", "total")
shapes = st.tuples(st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 10_000)


def responses(n: int, m: int, seed: int = 0, width: int = 5, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((n,), (m,), (n, width), (m, width))
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def slow_cost(chosen, rejected, h_chosen, h_rejected, w_r: float, w_s: float, dissimilar: bool = False) -> np.ndarray:
    cost = np.zeros((len(chosen), len(rejected)))
    for i in range(len(chosen)):
        for j in range(len(rejected)):
            a, b = h_chosen[i], h_rejected[j]
            lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
            cosine = sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0
            reward = 1 - expit(abs(chosen[i] - rejected[j]))
            cost[i, j] = w_r * reward + w_s * (1 - cosine if dissimilar else cosine)
    return cost


def slow_sinkhorn(cost: np.ndarray, epsilon: float, iterations: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """Kernel-domain scaling, cell by cell: columns first, then rows, as POT does."""
    n, m = cost.shape
    kernel = np.exp(-cost / epsilon) * (1.0 if allowed is None else allowed)
    u, v = np.ones(n), np.ones(m)
    for _ in range(iterations):
        for j in range(m):
            v[j] = (1 / m) / sum(kernel[i, j] * u[i] for i in range(n))
        for i in range(n):
            u[i] = (1 / n) / sum(kernel[i, j] * v[j] for j in range(m))
    return u[:, None] * kernel * v[None, :]


def slow_margin(cost: np.ndarray, plan: np.ndarray, reading: str) -> np.ndarray:
    n, m = cost.shape
    margin = np.zeros(n)
    for i in range(n):
        for j in range(m):
            if reading == "diagonal":
                margin[i] += n * plan[i, j] * cost[i, j] if i == j else 0
            elif reading == "total":
                margin += plan[i, j] * cost[i, j]
            else:
                margin[i] += plan[i, j] * cost[i, j] * (n if reading == "conditional" else 1)
    return margin


# The cost


@pytest.mark.parametrize("term", ["similarity", "dissimilarity"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (6, 6), (3, 5)])
def test_cost_is_its_formula(n, m, term):
    tensors = responses(n, m)
    options = {"reward_weight": 0.7, "similarity_weight": 0.4, "similarity_term": term}
    expected = slow_cost(*(tensor.numpy() for tensor in tensors), 0.7, 0.4, term == "dissimilarity")
    np.testing.assert_allclose(transport_cost(*tensors, **options), expected, atol=1e-12)


def test_cost_defaults():
    tensors = responses(4, 4)
    expected = slow_cost(*(tensor.numpy() for tensor in tensors), 0.9, 0.1)
    np.testing.assert_allclose(transport_cost(*tensors), expected, atol=1e-12)


def test_cosine_with_a_zero_vector_is_zero_and_so_is_its_gradient():
    tensors = responses(3, 3)
    tensors[2][0] = 0
    for tensor in tensors:
        tensor.requires_grad_()
    cost = transport_cost(*tensors, reward_weight=0.0, similarity_weight=1.0)
    assert cost[0].tolist() == [0.0, 0.0, 0.0]
    cost.sum().backward()
    assert torch.equal(tensors[2].grad[0], torch.zeros(5, dtype=torch.float64))
    assert all(torch.isfinite(tensor.grad).all() for tensor in tensors)


def test_reward_cost_keeps_its_digits_where_rewards_are_far_apart():
    chosen, rejected = torch.tensor([40.0]), torch.tensor([0.0])
    cost = transport_cost(chosen, rejected, torch.ones(1, 2), torch.ones(1, 2), reward_weight=1.0, similarity_weight=0)
    assert cost.item() == pytest.approx(math.exp(-40), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_equal_promoted_ones(dtype):
    low = responses(5, 5, dtype=dtype)
    cost = transport_cost(*low)
    assert cost.dtype == torch.float32
    assert torch.equal(cost, transport_cost(*(tensor.float() for tensor in low)))
    stored = cost.to(dtype)
    plan = transport_plan(stored)
    assert plan.dtype == torch.float32
    assert torch.equal(plan, transport_plan(stored.float()))
    assert torch.equal(transport_margin(stored, plan), transport_margin(stored.float(), plan))


def test_one_float64_input_makes_the_cost_float64():
    tensors = responses(3, 3, dtype=torch.float32)
    tensors[0] = tensors[0].double()
    cost = transport_cost(*tensors)
    assert cost.dtype == transport_plan(cost).dtype == transport_margin(cost, transport_plan(cost)).dtype
    assert cost.dtype == torch.float64


def test_autocast_around_changes_nothing():
    tensors = responses(8, 8, width=64, dtype=torch.float32)
    plain = transport_cost(*tensors)
    plan = transport_plan(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (tensors[2] @ tensors[3].T).dtype == torch.bfloat16
        assert torch.equal(transport_cost(*tensors), plain)
        assert torch.equal(transport_plan(plain), plan)


# The plan


@pytest.mark.parametrize("epsilon", [0.03, 0.1, 1.0])
@pytest.mark.parametrize("iterations", [1, 3, 50])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (4, 7), (7, 4)])
def test_plan_equals_pot_and_a_slow_loop(n, m, epsilon, iterations):
    cost = transport_cost(*responses(n, m, seed=n * m))
    plan = transport_plan(cost, epsilon=epsilon, iterations=iterations).numpy()
    uniform = np.full(n, 1 / n), np.full(m, 1 / m)
    options = {"method": "sinkhorn_log", "numItermax": iterations, "stopThr": 0, "warn": False}
    np.testing.assert_allclose(plan, ot.sinkhorn(*uniform, cost.numpy(), epsilon, **options), atol=1e-13)
    np.testing.assert_allclose(plan, slow_sinkhorn(cost.numpy(), epsilon, iterations), atol=1e-12)


def test_plan_solves_the_regularized_problem():
    """A general optimizer that knows nothing of Sinkhorn, on the dual problem, finds the same plan."""
    cost = transport_cost(*responses(4, 4, seed=3)).numpy()

    def dual_plan(potentials):
        return np.exp((potentials[:4, None] + potentials[None, 4:] - cost) / 0.1)

    def negative_dual(potentials):
        plan = dual_plan(potentials)
        gradient = np.concatenate([plan.sum(axis=1), plan.sum(axis=0)]) - 0.25
        return 0.1 * plan.sum() - 0.25 * potentials.sum(), gradient

    best = minimize(negative_dual, np.zeros(8), jac=True, method="BFGS", options={"gtol": 1e-9})
    plan = transport_plan(torch.from_numpy(cost), epsilon=0.1, iterations=500)
    np.testing.assert_allclose(plan, dual_plan(best.x), atol=1e-8)


def test_exactly_the_iterations_asked_for():
    """POT's own threshold stops early here, and two iterations at epsilon 1e-3 make it warn."""
    cost = transport_cost(*responses(6, 6, seed=6))
    uniform = np.full(6, 1 / 6)
    stopped = ot.sinkhorn(uniform, uniform, cost.numpy(), 0.1, method="sinkhorn_log", numItermax=50)
    expected = slow_sinkhorn(cost.numpy(), 0.1, 50)
    assert np.abs(stopped - expected).max() > 1e-11
    np.testing.assert_allclose(transport_plan(cost, epsilon=0.1), expected, atol=1e-14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transport_plan(cost, epsilon=1e-3, iterations=2)


@pytest.mark.parametrize("iterations", [1, 2, 50])
@pytest.mark.parametrize("epsilon", [1e-4, 0.1, 1e3])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (6, 6), (3, 8)])
def test_loop_for_accelerators_equals_pot(n, m, epsilon, iterations):
    cost = transport_cost(*responses(n, m, seed=11))
    ours = _column_potential(cost, epsilon, iterations)
    theirs = _column_potential_pot(cost, epsilon, iterations)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_loop_for_accelerators_propagates_a_nan():
    cost = transport_cost(*responses(3, 3))
    cost[1, 2] = float("nan")
    assert _column_potential(cost, 0.1, 5).isnan().all()


@settings(deadline=None, max_examples=40)
@given(shape=shapes, seed=seeds, epsilon=st.sampled_from([1e-4, 0.01, 0.1, 1.0, 1e3]), single=st.booleans())
def test_plan_has_exact_rows_and_no_negative_mass(shape, seed, epsilon, single):
    cost = transport_cost(*responses(*shape, seed=seed, dtype=torch.float32 if single else torch.float64))
    plan = transport_plan(cost, epsilon=epsilon)
    assert plan.dtype == cost.dtype
    assert torch.isfinite(plan).all()
    assert (plan >= 0).all()
    rows = plan.double().sum(dim=1).numpy()
    np.testing.assert_allclose(rows, 1 / shape[0], rtol=1e-6 if single else 1e-13)
    assert torch.isfinite(transport_margin(cost, plan)).all()


@settings(deadline=None, max_examples=40)
@given(shape=shapes, seed=seeds)
def test_converged_plan_has_both_marginals(shape, seed):
    plan = transport_plan(transport_cost(*responses(*shape, seed=seed)), epsilon=0.1, iterations=300).numpy()
    np.testing.assert_allclose(plan.sum(axis=1), 1 / shape[0], atol=1e-12)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / shape[1], atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(shape=shapes, seed=seeds, reading=st.sampled_from(["conditional", "mass", "total"]))
def test_permuting_rows_and_columns_permutes_plan_and_margins(shape, seed, reading):
    cost = transport_cost(*responses(*shape, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(size, generator=generator) for size in shape)
    shuffled = cost[rows][:, columns]
    plan, shuffled_plan = transport_plan(cost), transport_plan(shuffled)
    np.testing.assert_allclose(shuffled_plan, plan[rows][:, columns], atol=1e-12)
    margins = transport_margin(cost, plan, reading=reading)
    np.testing.assert_allclose(transport_margin(shuffled, shuffled_plan, reading=reading), margins[rows], atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 7), seed=seeds)
def test_permuting_pairs_permutes_diagonal_margins(n, seed):
    cost = transport_cost(*responses(n, n, seed=seed))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = cost[order][:, order]
    margins = transport_margin(cost, transport_plan(cost), reading="diagonal")
    shuffled_margins = transport_margin(shuffled, transport_plan(shuffled), reading="diagonal")
    np.testing.assert_allclose(shuffled_margins, margins[order], atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(shape=shapes, seed=seeds, k=st.floats(0.01, 100))
def test_scaling_cost_and_epsilon_together_leaves_the_plan(shape, seed, k):
    cost = transport_cost(*responses(*shape, seed=seed))
    np.testing.assert_allclose(transport_plan(k * cost, epsilon=0.1 * k), transport_plan(cost), atol=1e-11)


def test_one_pair_moves_onto_itself():
    cost = torch.tensor([[0.3]])
    plan = transport_plan(cost)
    assert plan.tolist() == [[1.0]]
    for reading in READINGS:
        assert transport_margin(cost, plan, reading=reading).item() == pytest.approx(0.3)


def test_equal_rows_get_equal_shares():
    cost = transport_cost(*responses(5, 5))
    cost[:] = cost[2]
    plan = transport_plan(cost)
    np.testing.assert_allclose(plan, 1 / 25, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_of_epsilon(dtype):
    """A very large epsilon gives the independent coupling, a very small one the best assignment."""
    cost = torch.tensor([[0.1, 0.9, 0.8], [0.7, 0.2, 0.9], [0.6, 0.8, 0.3]], dtype=dtype)
    np.testing.assert_allclose(transport_plan(cost, epsilon=1e3), 1 / 9, atol=1e-4)
    np.testing.assert_allclose(transport_plan(cost, epsilon=1e-4), np.eye(3) / 3, atol=1e-6)


def test_without_diagonal_no_mass_stays_on_it():
    cost = transport_cost(*responses(5, 5, seed=2))
    before = cost.clone()
    plan = transport_plan(cost, diagonal=False)
    assert torch.equal(cost, before)
    assert plan.diagonal().tolist() == [0.0] * 5
    np.testing.assert_allclose(plan, slow_sinkhorn(cost.numpy(), 0.1, 50, 1 - np.eye(5)), atol=1e-12)
    np.testing.assert_allclose(transport_plan(cost[:2, :2], diagonal=False), [[0, 0.5], [0.5, 0]])


def test_plan_carries_no_gradient():
    cost = transport_cost(*responses(3, 3)).requires_grad_()
    assert not transport_plan(cost).requires_grad


# The margin


@pytest.mark.parametrize(
    ("n", "m", "reading"),
    [(n, n, reading) for n in (1, 6) for reading in READINGS]
    + [(4, 7, reading) for reading in READINGS if reading != "diagonal"],
)
def test_margin_readings_equal_a_slow_loop(n, m, reading):
    cost = transport_cost(*responses(n, m, seed=7))
    plan = transport_plan(cost)
    expected = slow_margin(cost.numpy(), plan.numpy(), reading)
    margins = transport_margin(cost, plan, reading=reading)
    assert margins.shape == (n,)
    np.testing.assert_allclose(margins, expected, atol=1e-13)


def test_conditional_is_the_default_reading():
    cost = transport_cost(*responses(4, 4))
    plan = transport_plan(cost)
    assert torch.equal(transport_margin(cost, plan), transport_margin(cost, plan, reading="conditional"))


@pytest.mark.parametrize("reading", READINGS)
def test_gradients_with_the_plan_held_fixed(reading):
    tensors = [tensor.requires_grad_() for tensor in responses(3, 3, seed=9)]
    plan = transport_plan(transport_cost(*tensors))

    def margin(*inputs):
        return transport_margin(transport_cost(*inputs), plan, reading=reading)

    assert torch.autograd.gradcheck(transport_cost, tensors)
    assert torch.autograd.gradcheck(margin, tensors)


def test_margin_sends_no_gradient_into_a_given_plan():
    cost = transport_cost(*responses(3, 3)).requires_grad_()
    plan = transport_plan(cost).requires_grad_()
    transport_margin(cost, plan).sum().backward()
    assert plan.grad is None
    np.testing.assert_allclose(cost.grad, 3 * plan.detach())


# Diagnostics of a plan


def test_marginal_error_covers_rows_and_columns():
    uniform = torch.full((2, 4), 1 / 8, dtype=torch.float64)
    assert marginal_error(uniform).item() == 0
    moved = uniform.clone()
    moved[0, 0] += 0.05
    moved[0, 1] -= 0.05
    assert marginal_error(moved).item() == pytest.approx(0.05)
    assert marginal_error(moved.T).item() == pytest.approx(0.05)
    cost = transport_cost(*responses(6, 6, seed=5))
    plan = transport_plan(cost, epsilon=0.01, iterations=1)
    assert marginal_error(plan).item() == pytest.approx(np.abs(plan.numpy().sum(0) - 1 / 6).max())
    assert marginal_error(plan).item() > 1e-3


def test_plan_entropy_between_its_bounds():
    assert plan_entropy(torch.full((3, 5), 1 / 15)).item() == pytest.approx(math.log(15))
    assert plan_entropy(torch.eye(4) / 4).item() == pytest.approx(math.log(4))


# Errors


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(position, value):
    tensors = responses(3, 3)
    tensors[position].view(-1)[1] = value
    names = ("chosen_rewards", "rejected_rewards", "chosen_embeddings", "rejected_embeddings")
    with pytest.raises(ValueError, match=f"^{names[position]} must be finite"):
        transport_cost(*tensors)


def test_plan_and_margin_refuse_values_that_are_not_finite():
    cost = torch.ones(2, 2)
    bad = cost.clone()
    bad[0, 1] = float("nan")
    with pytest.raises(ValueError, match=r"^cost must be finite"):
        transport_plan(bad)
    with pytest.raises(ValueError, match=r"^cost must be finite"):
        transport_margin(bad, cost)
    with pytest.raises(ValueError, match=r"^plan must be finite"):
        transport_margin(cost, bad)
    with pytest.raises(ValueError, match=r"^cost / epsilon \(epsilon 1e-44\) must be finite"):
        transport_plan(cost, epsilon=1e-44)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(3, 1)}, r"^chosen_rewards must have shape \(n,\) with n >= 1, got \(3, 1\)"),
        ({0: torch.zeros(0), 2: torch.zeros(0, 5)}, "^chosen_rewards must have shape"),
        ({2: torch.zeros(4, 5)}, r"^chosen_embeddings must have shape \(3, d\)"),
        ({3: torch.zeros(3)}, r"^rejected_embeddings must have shape \(3, d\)"),
        ({3: torch.zeros(3, 4)}, "must have the same width, got 5 and 4"),
    ],
)
def test_cost_refuses_shapes(change, message):
    tensors = responses(3, 3)
    for position, tensor in change.items():
        tensors[position] = tensor
    with pytest.raises(ValueError, match=message):
        transport_cost(*tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_weight": -0.1}, "^reward_weight must be a finite number of at least 0, got -0.1"),
        ({"similarity_weight": float("nan")}, "^similarity_weight must be a finite number"),
        ({"similarity_term": "cosine"}, "^similarity_term must be one of similarity, dissimilarity, got 'cosine'"),
    ],
)
def test_cost_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        transport_cost(*responses(2, 2), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "^epsilon must be a finite number above 0, got 0.0"),
        ({"epsilon": -1.0}, "^epsilon must be"),
        ({"epsilon": float("inf")}, "^epsilon must be"),
        ({"iterations": 0}, "^iterations must be a whole number of at least 1, got 0"),
        ({"iterations": 2.5}, "^iterations must be a whole number"),
        ({"diagonal": False}, "^diagonal=False needs a square cost"),
    ],
)
def test_plan_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        transport_plan(torch.ones(2, 3), **options)


@pytest.mark.parametrize("shape", [(0, 2), (2, 0), (3,), (1, 2, 2)])
def test_plan_refuses_anything_but_a_matrix(shape):
    with pytest.raises(ValueError, match=r"^cost must have shape \(n, m\)"):
        transport_plan(torch.ones(shape))


def test_one_pair_needs_the_diagonal():
    with pytest.raises(ValueError, match="at least 2 x 2"):
        transport_plan(torch.ones(1, 1), diagonal=False)


def test_margin_refuses():
    cost = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"^reading must be one of conditional, mass, diagonal, total, got 'row'"):
        transport_margin(cost, cost, reading="row")
    with pytest.raises(ValueError, match=r'^reading "diagonal" needs a square cost'):
        transport_margin(cost, cost, reading="diagonal")
    with pytest.raises(ValueError, match=r"^cost and plan must have the same shape"):
        transport_margin(cost, cost.T)
