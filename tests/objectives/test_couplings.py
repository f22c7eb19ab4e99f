from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from aplot_lightning.errors import UserError
from aplot_lightning.objectives import (
    BetaLink,
    ColumnMargin,
    ConstantMargin,
    Hinge,
    Identity,
    Norm,
    Objective,
    Probit,
    Quality,
    Sorted,
)
from aplot_lightning.types import Pairs

QUIET = settings(deadline=None, max_examples=50)  # the machine may be busy with other runs
few = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=7)


def two_sides(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_identity_keeps_each_pair():
    assert Identity()(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])).tolist() == [2.0, -1.0]
    assert Identity().separable
    assert Identity().keeps_pairs


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_sorted_gaps_are_pots_transport_in_one_dimension(n, p):
    chosen, rejected = two_sides(n)
    gaps = Sorted()(chosen, rejected).numpy()
    assert np.mean(np.abs(gaps) ** p) == pytest.approx(ot.wasserstein_1d(chosen.numpy(), rejected.numpy(), p=p))


def test_sorted_gaps_are_those_of_pots_plan():
    chosen, rejected = two_sides(8)
    plan = ot.emd_1d(chosen.numpy(), rejected.numpy())
    rows, columns = np.nonzero(plan > 1e-9)
    assert len(rows) == 8
    expected = np.sort(chosen.numpy()[rows] - rejected.numpy()[columns])
    np.testing.assert_allclose(np.sort(Sorted()(chosen, rejected)), expected, atol=1e-12)


@QUIET
@given(seed=st.integers(0, 500), n=st.integers(1, 7))
def test_no_other_matching_is_cheaper_for_a_convex_cost(seed, n):
    chosen, rejected = two_sides(n, seed).numpy()
    cost = np.cosh(np.subtract.outer(chosen, rejected))
    best = cost[optimize.linear_sum_assignment(cost)].sum()
    gaps = Sorted()(torch.tensor(chosen), torch.tensor(rejected))
    assert np.cosh(gaps.numpy()).sum() == pytest.approx(best)


@QUIET
@given(seed=st.integers(0, 500), shift=st.floats(-1, 3))
def test_all_gaps_above_zero_is_stochastic_dominance(seed, shift):
    chosen, rejected = two_sides(6, seed)
    chosen = chosen + shift
    points = torch.cat([chosen, rejected]).numpy()
    below = [stats.ecdf(side.numpy()).cdf.evaluate(points) for side in (chosen, rejected)]
    assert bool((Sorted()(chosen, rejected) >= 0).all()) == bool((below[0] <= below[1]).all())


@QUIET
@given(values=few, seed=st.integers(0, 99), shift=st.floats(-1e3, 1e3))
def test_order_and_shift_of_rewards_do_not_matter(values, seed, shift):
    chosen = torch.tensor(values, dtype=torch.float64)
    rejected = chosen.flip(0) / 2
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    gaps = Sorted()(chosen, rejected)
    torch.testing.assert_close(Sorted()(chosen[order], rejected), gaps)
    torch.testing.assert_close(Sorted()(chosen + shift, rejected + shift), gaps, atol=1e-9, rtol=1e-9)


def test_one_pair_is_its_own_gap_and_no_pairs_have_none():
    assert Sorted()(torch.tensor([2.0]), torch.tensor([5.0])).tolist() == [-3.0]
    assert Sorted()(torch.empty(0), torch.empty(0)).shape == (0,)


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_ties_and_duplicates_have_a_gradient(value):
    chosen = torch.tensor([value, value, 1.0, value], requires_grad=True)
    rejected = torch.tensor([value, 1.0, 1.0, value], requires_grad=True)
    gaps = Sorted()(chosen, rejected)
    gaps.sum().backward()
    assert chosen.grad.tolist() == [1.0] * 4
    assert rejected.grad.tolist() == [-1.0] * 4


def test_gradcheck():
    chosen, rejected = two_sides(5)
    inputs = (chosen.clone().requires_grad_(), rejected.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: Sorted()(a, b).square(), inputs)


def test_objective_with_sorted_rewards_by_its_formula(make_batch):
    scores, pairs = make_batch(6)
    result = Objective(link=Hinge(), coupling=Sorted(), margin=ConstantMargin(0.2))(scores, pairs)
    chosen, rejected = (np.sort(scores.rewards[index]) for index in (pairs.chosen, pairs.rejected))
    assert result.loss.item() == pytest.approx(np.mean(np.maximum(0, 1 - (chosen - rejected - 0.2))))


@QUIET
@given(seed=st.integers(0, 99))
def test_sorted_objective_ignores_the_pairing(make_batch, seed):
    scores, pairs = make_batch(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    mixed = Pairs(pairs.chosen, pairs.rejected[order])
    objective = Objective(coupling=Sorted())
    torch.testing.assert_close(objective(scores, mixed).loss, objective(scores, pairs).loss)


def test_components_that_belong_to_single_pairs_are_refused():
    assert not Objective(coupling=Sorted()).separable
    with pytest.raises(ValueError, match=r"^Sorted breaks pairs up: it must be used with NoMargin or ConstantMargin"):
        Objective(coupling=Sorted(), margin=ColumnMargin())
    with pytest.raises(ValueError, match=r"^Sorted breaks pairs up: it must be used without a weighting"):
        Objective(coupling=Sorted(), weighting=Norm())
    for options in ({"link": Probit("model")}, {"link": BetaLink()}, {"target": Quality()}):
        with pytest.raises(ValueError, match=r"^Sorted .* must be used without (Probit|BetaLink|Quality)"):
            Objective(coupling=Sorted(), **options)
    with pytest.raises(UserError, match=r'^Sorted breaks pairs up: it cannot use the column "target"'):
        Objective(coupling=Sorted()).require(["target"])
