from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from torch.nn import functional

from aplot_lightning.errors import UserError
from aplot_lightning.objectives import ColumnTarget, HardTarget, LabelSmoothing, Objective, Quality
from aplot_lightning.types import Scores

QUIET = settings(deadline=None, max_examples=50)  # the machine may be busy with other runs
SOFT = [1.0, 0.7, 0.5, 0.2, 0.0]


def targets(component, make_batch, dtype=torch.float64, **columns):
    scores, pairs = make_batch(5, dtype=dtype, **columns)
    values = component(*scores.pairs(pairs), pairs.columns)
    assert values.shape == (5,)
    assert values.dtype == dtype
    return values


@pytest.mark.parametrize("component", [ColumnTarget(), HardTarget()])
def test_plain_pairs_have_target_one(component, make_batch):
    assert targets(component, make_batch).tolist() == [1.0] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_column_target_uses_the_data_unchanged(make_batch, dtype):
    np.testing.assert_allclose(targets(ColumnTarget(), make_batch, dtype, target=SOFT), SOFT, rtol=1e-7)


def test_hard_target_keeps_only_the_preferred_side(make_batch):
    assert targets(HardTarget(), make_batch, target=SOFT).tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_label_smoothing(make_batch):
    np.testing.assert_allclose(targets(LabelSmoothing(), make_batch), 0.9)
    expected = [0.8 * target + 0.2 * (1 - target) for target in SOFT]
    np.testing.assert_allclose(targets(LabelSmoothing(0.2), make_batch, target=SOFT), expected, rtol=1e-6)


SCORES = {"chosen_score": [4.0, 3.5, 2.0, 1.0, 900.0], "rejected_score": [1.0, 3.0, 2.0, 4.5, -900.0]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.3, 1.1, 2.2])
def test_quality_is_scipys_sigmoid_of_the_scores(make_batch, gamma, dtype):
    difference = np.subtract(SCORES["chosen_score"], SCORES["rejected_score"])
    values = targets(Quality(gamma), make_batch, dtype, **SCORES)
    np.testing.assert_allclose(values, expit(gamma * difference), rtol=1e-6, atol=1e-30)


def test_quality_takes_the_scores_and_not_the_target(make_batch):
    plain = targets(Quality(), make_batch, **SCORES)
    assert torch.equal(targets(Quality(), make_batch, target=SOFT, **SCORES), plain)
    assert plain[2] == 0.5


@QUIET
@given(scores=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=2), gamma=st.floats(0.01, 10))
def test_quality_swaps_with_the_sides_and_stays_a_probability(make_batch, scores, gamma):
    batch = make_batch(1)[0].pairs(make_batch(1)[1])
    one, two = torch.tensor(scores)[:, None]
    there = Quality(gamma)(*batch, {"chosen_score": one, "rejected_score": two})
    back = Quality(gamma)(*batch, {"chosen_score": two, "rejected_score": one})
    assert 0 <= there.item() <= 1
    assert there.item() + back.item() == pytest.approx(1, abs=1e-6)


def test_quality_of_one_pair_and_of_none(make_batch):
    for n in (0, 1):
        scores, pairs = make_batch(n, chosen_score=[2.0] * n, rejected_score=[1.0] * n)
        assert Quality()(*scores.pairs(pairs), pairs.columns).tolist() == pytest.approx([expit(1.1)] * n)


def test_objective_with_quality_targets_is_binary_cross_entropy_at_any_shift(make_batch):
    scores, pairs = make_batch(5, **SCORES)
    gaps = scores.rewards[pairs.chosen] - scores.rewards[pairs.rejected]
    difference = np.subtract(SCORES["chosen_score"], SCORES["rejected_score"])
    expected = functional.binary_cross_entropy_with_logits(gaps, torch.tensor(expit(1.1 * difference)))
    for shift in (0.0, 100.0):
        shifted = Scores({**scores.tensors, "rewards": scores.rewards + shift})
        assert Objective(target=Quality())(shifted, pairs).loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_objective_with_quality_targets_gradcheck(make_batch):
    scores, pairs = make_batch(5, **SCORES)

    def loss(rewards):
        return Objective(target=Quality())(Scores({**scores.tensors, "rewards": rewards}), pairs).loss

    assert torch.autograd.gradcheck(loss, scores.rewards.requires_grad_())


@pytest.mark.parametrize("component", [Quality(), LabelSmoothing(), HardTarget(), ColumnTarget()])
def test_targets_in_low_precision_are_rounded_once(make_batch, component):
    values = targets(component, make_batch, torch.bfloat16, target=SOFT, **SCORES)
    wide = targets(component, make_batch, torch.float32, target=SOFT, **SCORES)
    np.testing.assert_allclose(values.float(), wide, atol=0.01)


@pytest.mark.parametrize("missing", ["chosen_score", "rejected_score"])
def test_quality_without_its_scores_says_how_to_fix_it(make_batch, missing):
    columns = {name: values for name, values in SCORES.items() if name != missing}
    with pytest.raises(UserError, match=rf'^Quality needs the column "{missing}".*add "{missing}" to the rows of data'):
        targets(Quality(), make_batch, **columns)
    assert Objective(target=Quality()).columns == {"chosen_score": "Quality", "rejected_score": "Quality"}
