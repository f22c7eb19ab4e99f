from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import nn
from torch.nn import functional

from aplot_lightning.errors import NotFiniteError, UserError
from aplot_lightning.objectives import InstanceMargin, MinNorm, Norm, Objective, PartialTransport, TransportMargin
from aplot_lightning.objectives.weightings.min_norm import head_gradient, min_norm_weights
from aplot_lightning.objectives.weightings.partial_transport import partial_row_mass
from aplot_lightning.types import Pairs, Scores

SOURCES = [0, 7, 7, 0, 2, 7, 2, 0]
WEIGHTS = [1.0, 0.5, 2.0, 1.0, 0.3, 1.0, 1.0, 0.7]


def factors_of(component, scores, pairs):
    """The factors for Bradley–Terry losses, and these losses."""
    chosen, rejected = scores.map(lambda tensor: tensor.detach().requires_grad_()).pairs(pairs)
    losses = functional.softplus(rejected.rewards - chosen.rewards)
    weights = pairs.columns.get("weight", torch.ones(len(pairs))).to(losses)
    factors = component(losses, weights, chosen, rejected, pairs.columns)
    assert not factors.requires_grad
    return factors, losses.detach(), weights


# Norm


def distances_of(scores, pairs):
    return np.linalg.norm(scores.embeddings[pairs.chosen] - scores.embeddings[pairs.rejected], axis=1)


def test_norm_is_the_running_average_over_each_pairs_own_distance(make_batch):
    component, average = Norm(0.8), None
    for seed in range(4):
        scores, pairs = make_batch(5, seed, weight=[1.0, 2.0, 0.5, 0.0, 1.0])
        distances = distances_of(scores, pairs)
        mean = np.average(distances, weights=[1.0, 2.0, 0.5, 0.0, 1.0])
        average = mean if average is None else 0.8 * average + 0.2 * mean
        np.testing.assert_allclose(factors_of(component, scores, pairs)[0], average / distances, rtol=1e-12)
        assert component.average.item() == pytest.approx(average)


def test_norm_gives_every_pair_the_same_head_gradient_but_for_its_error(make_batch):
    """The purpose of the method: ‖∂(f ℓ)/∂(head weights)‖ = (1 - σ(Δ)) · average."""
    scores, pairs = make_batch(6)
    factors, _, _ = factors_of(component := Norm(), scores, pairs)
    head = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    for i in range(6):
        h = scores.embeddings[pairs.chosen[i]] - scores.embeddings[pairs.rejected[i]]
        gap = head(h)
        (gradient,) = torch.autograd.grad(factors[i] * functional.softplus(-gap), head.weight)
        assert gradient.norm().item() == pytest.approx((torch.sigmoid(-gap) * component.average).item())


def test_norm_moves_only_in_training_and_only_on_batches_with_weight(make_batch):
    component = Norm()
    scores, pairs = make_batch(4)
    in_evaluation = factors_of(component.eval(), scores, pairs)[0]
    assert component.average.item() == 0
    torch.testing.assert_close(factors_of(component.train(), scores, pairs)[0], in_evaluation)
    before = component.average.clone()
    factors_of(component.eval(), *make_batch(4, 1))
    for count, column in ((0, []), (3, [0.0] * 3)):
        factors_of(component.train(), *make_batch(count, 2, weight=column))
    assert torch.equal(component.average, before)


def test_norm_resumes_from_its_state(make_batch):
    component, again = Norm(), Norm()
    factors_of(component, *make_batch(4, 0))
    again.load_state_dict(component.state_dict())
    later = make_batch(4, 1)
    torch.testing.assert_close(factors_of(again, *later)[0], factors_of(component, *later)[0], rtol=1e-6, atol=0)


def test_norm_stays_wide_in_a_model_of_half_precision(make_batch):
    objective = Objective(weighting=Norm())
    module = nn.ModuleList([objective, nn.Linear(2, 2)]).to(torch.bfloat16)
    assert module[1].weight.dtype == torch.bfloat16
    assert objective.weighting.average.dtype == torch.float32
    objective(*make_batch(4, dtype=torch.bfloat16))
    kept = objective.weighting.average.clone()
    module.to(torch.bfloat16)
    assert torch.equal(objective.weighting.average, kept)


@pytest.mark.parametrize("equal", [1, 4])
def test_norm_guards_pairs_without_distance(make_batch, equal):
    scores, pairs = make_batch(4)
    embeddings = scores.embeddings.clone()
    embeddings[pairs.rejected[:equal]] = embeddings[pairs.chosen[:equal]]
    scores = Scores({"rewards": scores.rewards, "embeddings": embeddings}).map(lambda t: t.requires_grad_())
    result = Objective(weighting=(component := Norm()))(scores, pairs)
    result.loss.backward()
    assert torch.isfinite(scores.rewards.grad).all()
    assert scores.embeddings.grad is None  # detached
    factors = factors_of(component.eval(), scores.detach(), pairs)[0]
    assert factors[:equal].tolist() == [1.0] * equal
    assert torch.isfinite(factors).all()


# MinNorm


def slsqp(gradients: np.ndarray) -> float:
    """The least squared norm over the simplex by an independent solver."""
    count = len(gradients)
    gram = gradients @ gradients.T
    solved = minimize(
        lambda x: x @ gram @ x,
        np.full(count, 1 / count),
        jac=lambda x: 2 * gram @ x,
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones(count)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return solved.fun


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 6), width=st.integers(1, 8), seed=st.integers(0, 10**6), lean=st.sampled_from([0, 0.3, 2]))
def test_min_norm_against_slsqp_and_its_optimality_conditions(count, width, seed, lean):
    gradients = np.random.default_rng(seed).normal(size=(count, width)) + lean
    found, counted = min_norm_weights(torch.from_numpy(gradients))
    weights = np.array(found)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    assert counted == count
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    mean = weights @ unit
    assert mean @ mean <= slsqp(unit) + 1e-9
    # the convex hull's point next to the origin: no gradient has a smaller product with it, all used ones the same
    assert (unit @ mean).min() >= mean @ mean - 1e-9
    assert (unit @ mean)[weights > 1e-6] == pytest.approx(mean @ mean, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(angle=st.floats(0.05, 3.1), length=st.floats(1e-6, 1e6))
def test_min_norm_of_two_by_the_closed_form(angle, length):
    """Sener and Koltun 2018, equation 4, for normalized gradients: the middle of the two, whatever their lengths."""
    a = np.array([1.0, 0.0])
    b = np.array([np.cos(angle), np.sin(angle)])
    weight = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
    found, _ = min_norm_weights(torch.from_numpy(np.stack([a, length * b])))
    assert found == pytest.approx([weight, 1 - weight], abs=1e-6)
    assert weight == pytest.approx(0.5)


def test_min_norm_of_three_by_brute_force():
    gradients = np.array([[1.0, 0.1, 0.0], [1.0, -0.4, 0.3], [-0.2, 1.0, 0.5]])
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    grid = [(i, j, 400 - i - j) for i, j in itertools.product(range(401), repeat=2) if i + j <= 400]
    best = min(grid, key=lambda x: np.linalg.norm(np.array(x) / 400 @ unit))
    assert min_norm_weights(torch.from_numpy(gradients))[0] == pytest.approx(np.array(best) / 400, abs=5e-3)


def test_min_norm_ties_and_gradients_of_zero():
    ones = torch.ones(3, 4)
    assert min_norm_weights(ones)[0] == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert min_norm_weights(torch.stack([ones[0], 0 * ones[0], ones[0] * 1e-30])) == (
        pytest.approx([0.5, 0.0, 0.5], abs=1e-3),
        2,
    )
    assert min_norm_weights(0 * ones) == ([1 / 3] * 3, 3)
    assert min_norm_weights(ones[:1]) == ([1.0], 1)
    assert min_norm_weights(torch.tensor([[1.0], [-5.0]]))[0] == pytest.approx([0.5, 0.5])
    with pytest.raises(NotFiniteError, match=r"^the gradients of MinNorm's sources must be finite"):
        min_norm_weights(torch.tensor([[1.0], [float("nan")]]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("margin", [None, InstanceMargin(detach=False), TransportMargin(detach=False)])
def test_source_gradients_are_those_of_a_real_linear_head(make_batch, bias, margin):
    """Holds too if the margin mixes pairs of several sources; the head's gradient then comes only from the rewards."""
    scores, pairs = make_batch(8)
    embeddings = scores.embeddings
    head = nn.Linear(6, 1, bias=bias, dtype=torch.float64)
    rewards = head(embeddings).squeeze(1)
    chosen, rejected = Scores({"rewards": rewards, "embeddings": embeddings}).pairs(pairs)
    margins = 0.0 if margin is None else margin(chosen, rejected, {})
    losses = functional.softplus(margins - chosen.rewards + rejected.rewards)
    share = torch.tensor([0.2, 0, 0, 0.3, 0, 0, 0, 0.5], dtype=torch.float64)
    expected = torch.autograd.grad((share * losses).sum(), list(head.parameters()), retain_graph=True)
    found = head_gradient((share * losses).sum(), chosen, rejected)
    torch.testing.assert_close(found, expected[0][0])
    assert all(slope.abs().max() < 1e-12 for slope in expected[1:])  # a bias has no gradient


@pytest.mark.parametrize("columns", [{}, {"weight": WEIGHTS}])
def test_min_norm_makes_the_loss_k_times_the_weighted_sum_of_source_losses(make_batch, columns):
    scores, pairs = make_batch(8, **columns)
    pairs.columns["source"] = torch.tensor(SOURCES)
    factors, losses, weights = factors_of(MinNorm(), scores, pairs)
    chosen, rejected = scores.pairs(pairs)
    means, gradients = [], []
    for code in (0, 2, 7):
        own = np.array(SOURCES) == code
        w = weights.numpy() * own / weights.numpy()[own].sum()
        slope = -1 / (1 + np.exp((chosen.rewards - rejected.rewards).numpy()))  # of softplus(-gap)
        gradients.append((w * slope) @ (chosen.embeddings - rejected.embeddings).numpy())
        means.append(w @ losses.numpy())
    unit = np.stack([g / np.linalg.norm(g) for g in gradients])
    by_source = [factors[SOURCES.index(code)].item() for code in (0, 2, 7)]
    shares = [weights.numpy()[np.array(SOURCES) == code].sum() / weights.sum().item() for code in (0, 2, 7)]
    lambdas = np.multiply(by_source, shares) / 3
    assert lambdas.sum() == pytest.approx(1)
    assert np.linalg.norm(lambdas @ unit) ** 2 == pytest.approx(slsqp(unit), abs=1e-8)
    result = Objective(weighting=MinNorm())(scores.map(lambda t: t.requires_grad_()), pairs)
    assert result.loss.item() == pytest.approx(3 * lambdas @ means)


def test_min_norm_of_one_source_is_the_plain_loss(make_batch):
    scores, pairs = make_batch(5)
    pairs.columns["source"] = torch.full((5,), 3)
    assert factors_of(MinNorm(), scores, pairs)[0].tolist() == [1.0] * 5
    pairs.columns["source"][0] = 1  # a second one, without weight
    pairs.columns["weight"] = torch.tensor([0.0, 1, 1, 1, 1])
    assert factors_of(MinNorm(), scores, pairs)[0].tolist() == [1.0] * 5
    for n in (0, 1):
        scores, pairs = make_batch(n)
        pairs.columns["source"] = torch.zeros(n, dtype=torch.int64)
        assert factors_of(MinNorm(), scores, pairs)[0].tolist() == [1.0] * n


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_min_norm_does_not_depend_on_codes_or_order(make_batch, seed):
    scores, pairs = make_batch(8, seed, weight=WEIGHTS)
    pairs.columns["source"] = torch.tensor(SOURCES)
    expected = factors_of(MinNorm(), scores, pairs)[0]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    mixed = pairs.select(order)
    mixed.columns["source"] = 100 - mixed.columns["source"]
    torch.testing.assert_close(factors_of(MinNorm(), scores, mixed)[0], expected[order], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_min_norm_is_stable(make_batch, scale):
    """Saturated pairs have a gradient of 0: their sources are left out and nothing is NaN."""
    scores, pairs = make_batch(8, dtype=torch.float32)
    pairs.columns["source"] = torch.tensor(SOURCES)
    leaves = Scores({**scores.tensors, "rewards": scale * scores.rewards.sign()}).map(lambda t: t.requires_grad_())
    result = Objective(weighting=MinNorm())(leaves, pairs)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert torch.isfinite(leaves.rewards.grad).all()
    assert leaves.embeddings.grad is None


def test_min_norm_needs_its_column_a_graph_and_a_linear_head(make_batch):
    objective = Objective(weighting=MinNorm())
    scores, pairs = make_batch(8)
    with pytest.raises(UserError, match=r'^MinNorm needs the column "source"'):
        objective(scores, pairs)
    pairs.columns["source"] = torch.tensor(SOURCES)
    with torch.no_grad(), pytest.raises(ValueError, match=r"^MinNorm reads gradients: the objective must be called"):
        objective(scores, pairs)
    objective.require(["source"], linear_head=True)
    objective.require(["source"])
    with pytest.raises(UserError, match=r"^MinNorm needs a linear reward head.*model\.head") as caught:
        objective.require(["source"], linear_head=False)
    assert "\n" not in str(caught.value)
    Objective().require([], linear_head=False)


# PartialTransport


def double_loop_cost(scores, pairs, c=1.0):
    """Written from the formula."""
    x = (scores.embeddings[pairs.chosen] - scores.embeddings[pairs.rejected]).double().numpy()
    gap = (scores.rewards[pairs.chosen] - scores.rewards[pairs.rejected]).double().numpy()
    t = pairs.columns["target"].double().numpy() if "target" in pairs.columns else np.ones(len(x))
    cost = np.empty((len(x), len(x)))
    for i, j in itertools.product(range(len(x)), repeat=2):
        cosine = x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j]))
        p = 1 / (1 + np.exp(-gap[j]))
        cost[i, j] = min(1 - cosine + c * abs(t[i] - p), 1 + cosine + c * abs(t[i] - (1 - p)))
    np.fill_diagonal(cost, 1 + len(x) * (2 + c))
    return cost


def by_linear_programming(cost, share, mass):
    """The plan by scipy: minimize ⟨T, C⟩ with row and column sums at most `share` and `mass` in all."""
    n = len(share)
    rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    limits = {"A_ub": np.concatenate([rows, columns]), "b_ub": np.concatenate([share, share])}
    solved = linprog(cost.ravel(), A_eq=np.ones((1, n * n)), b_eq=[mass], method="highs", **limits)
    assert solved.status == 0
    return solved.x.reshape(n, n)


@pytest.mark.parametrize("columns", [{}, {"target": [1, 0.9, 0.2, 0.5, 1, 0, 1]}, {"weight": [1, 2, 0.5, 1, 0, 1, 1]}])
@pytest.mark.parametrize(("mass", "label_cost"), [(0.9, 1.0), (0.5, 3.0), (1.0, 0.5)])
def test_partial_transport_against_pot_and_linear_programming(make_batch, columns, mass, label_cost):
    scores, pairs = make_batch(7, 3, **columns)
    component = PartialTransport(mass, label_cost)
    cost = double_loop_cost(scores, pairs, label_cost)
    np.testing.assert_allclose(component.cost(*scores.pairs(pairs), pairs.columns), cost, atol=1e-12)
    factors, _, weights = factors_of(component, scores, pairs)
    share = weights.numpy() / weights.numpy().sum()
    plan = ot.partial.partial_wasserstein(share, share, cost, m=mass * (1 - 1e-15))
    used = share > 0
    np.testing.assert_allclose(factors[used], plan.sum(axis=1)[used] / (mass * share[used]), atol=1e-9)
    programmed = by_linear_programming(cost, share, mass)
    assert (plan * cost).sum() == pytest.approx((programmed * cost).sum())
    np.testing.assert_allclose(factors[used], programmed.sum(axis=1)[used] / (mass * share[used]), atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 12), seed=st.integers(0, 10**6), mass=st.floats(0.05, 1.0))
def test_partial_transport_keeps_its_mass(make_batch, n, seed, mass):
    scores, pairs = make_batch(n, seed)
    factors, _, _ = factors_of(PartialTransport(mass), scores, pairs)
    assert factors.mean().item() == pytest.approx(1)
    assert factors.min() >= 0
    assert factors.max() <= 1 / mass + 1e-9
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    mixed = factors_of(PartialTransport(mass), scores, pairs.select(order))[0]
    torch.testing.assert_close(mixed, factors[order], atol=1e-7, rtol=1e-7)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
def test_partial_transport_is_symmetric_in_the_two_sides(make_batch, seed):
    """A pair (chosen, rejected, t) and the pair (rejected, chosen, 1 - t) are equivalent."""
    scores, pairs = make_batch(6, seed, target=[1, 0.8, 0.6, 0.1, 1, 0.9])
    turn = torch.tensor([True, False, True, False, False, True])
    target = pairs.columns["target"]
    turned = Pairs(
        torch.where(turn, pairs.rejected, pairs.chosen),
        torch.where(turn, pairs.chosen, pairs.rejected),
        {"target": torch.where(turn, 1 - target, target)},
    )
    kept = factors_of(PartialTransport(0.7), scores, pairs)[0]
    torch.testing.assert_close(factors_of(PartialTransport(0.7), scores, turned)[0], kept, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("known", [False, True])
def test_partial_transport_drops_flipped_labels(known):
    """Clusters of ten similar pairs with one wrong label each: the weighting leaves out the wrong ones.

    With `known`, the model has memorized the wrong labels; a pair's own prediction must not confirm it.
    """
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 8, generator=generator)
    direction = centers.repeat(10, 1) + 0.1 * torch.randn(40, 8, generator=generator)
    flipped = torch.isin(torch.arange(40), torch.tensor([3, 12, 21, 30]))
    sign = torch.where(flipped, -1.0, 1.0)
    gap = torch.full((40,), 2.0) if known else 2.0 * sign
    tensors = {"rewards": torch.cat([gap, -gap]) / 2, "embeddings": torch.cat([direction * sign[:, None]] * 2)}
    tensors["embeddings"][40:] = 0
    pairs = Pairs(torch.arange(40), torch.arange(40, 80))
    factors, _, _ = factors_of(PartialTransport(0.9), Scores(tensors), pairs)
    assert factors[flipped].max() < 1e-6
    assert factors[~flipped].min() > 1


def test_partial_transport_edges(make_batch):
    assert factors_of(PartialTransport(0.3), *make_batch(1))[0].tolist() == [pytest.approx(1.0)]
    assert factors_of(PartialTransport(), *make_batch(0))[0].shape == (0,)
    assert factors_of(PartialTransport(), *make_batch(2, weight=[0.0, 0.0]))[0].tolist() == [1.0, 1.0]
    factors, _, _ = factors_of(PartialTransport(0.5), *make_batch(4, weight=[1.0, 0.0, 9.0, 0.0]))
    assert factors[[1, 3]].tolist() == [0.0, 0.0]  # no weight, no mass
    scores, pairs = make_batch(6)
    same = scores.map(torch.zeros_like)  # every cost ties
    first = factors_of(PartialTransport(0.5), same, pairs)[0]
    assert first.mean().item() == pytest.approx(1)
    assert torch.equal(factors_of(PartialTransport(0.5), same, pairs)[0], first)
    doubled = pairs.select(torch.tensor([0, 0, 1, 2, 2, 3]))
    assert factors_of(PartialTransport(0.8), scores, doubled)[0].mean().item() == pytest.approx(1)
    with pytest.raises(NotFiniteError, match="must be finite"):
        factors_of(PartialTransport(), scores.map(lambda t: t * float("nan")), pairs)


def test_partial_row_mass_of_a_problem_solved_by_hand():
    """Rows 0 and 1 prefer columns 1 and 0 and row 2 is expensive: with 2/3 of the mass it is left out."""
    cost = torch.tensor([[9.0, 0.1, 5.0], [0.2, 9.0, 5.0], [4.0, 4.0, 9.0]], dtype=torch.float64)
    share = torch.full((3,), 1 / 3, dtype=torch.float64)
    np.testing.assert_allclose(partial_row_mass(cost, share, 2 / 3), [1 / 3, 1 / 3, 0], atol=1e-12)


# All of them

EVERY = {"norm": Norm, "min_norm": MinNorm, "partial": lambda: PartialTransport(0.8)}


def with_sources(batch):
    batch[1].columns["source"] = torch.tensor(SOURCES)[: len(batch[1])]
    return batch


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck_with_the_factors_held_fixed(make_batch, name):
    scores, pairs = with_sources(make_batch(5))
    leaves = scores.map(lambda tensor: tensor.requires_grad_())
    factors = factors_of(EVERY[name](), scores, pairs)[0]

    def loss(rewards):
        return (factors * functional.softplus(rewards[pairs.rejected] - rewards[pairs.chosen])).mean()

    assert torch.autograd.gradcheck(loss, leaves.rewards)
    result = Objective(weighting=EVERY[name]())(leaves, pairs)
    torch.testing.assert_close(result.loss, loss(leaves.rewards))
    (expected,) = torch.autograd.grad(loss(leaves.rewards), leaves.rewards)
    torch.testing.assert_close(torch.autograd.grad(result.loss, leaves.rewards)[0], expected)
