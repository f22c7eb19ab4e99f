from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_expit
from torch.nn import functional

from aplot_lightning.errors import UserError
from aplot_lightning.objectives import (
    ColumnMargin,
    ConstantMargin,
    HardTarget,
    InstanceMargin,
    LabelSmoothing,
    Link,
    Margin,
    Objective,
    TransportMargin,
)
from aplot_lightning.types import Pairs, Scores

COLUMNS = {
    "margin": [0.1, 0.5, 0.0, 1.0, 2.0, 0.3],
    "target": [1.0, 0.8, 0.5, 0.1, 1.0, 0.9],
    "weight": [1.0, 0.5, 2.0, 1.0, 0.0, 3.0],
}
SEPARABLE = {
    "bt": Objective(),
    "constant": Objective(margin=ConstantMargin(0.3)),
    "column": Objective(margin=ColumnMargin()),
    "instance": Objective(margin=InstanceMargin(detach=False)),
    "smoothing": Objective(target=LabelSmoothing(0.2)),
    "hard": Objective(target=HardTarget()),
}
READINGS = ("conditional", "mass", "diagonal", "total")
TRANSPORT = {name: Objective(margin=TransportMargin(reading=name, detach=False)) for name in READINGS}
EVERY = SEPARABLE | TRANSPORT


def test_without_arguments_it_is_bradley_terry(make_batch):
    scores, pairs = make_batch(6)
    result = Objective()(scores, pairs)
    gaps = scores.rewards[pairs.chosen] - scores.rewards[pairs.rejected]
    assert torch.equal(result.gaps, gaps)
    assert result.margins.tolist() == [0.0] * 6
    expected = functional.binary_cross_entropy_with_logits(gaps, torch.ones_like(gaps))
    torch.testing.assert_close(result.loss, expected)
    assert result.loss.item() == pytest.approx(-log_expit(gaps.numpy()).mean())


def test_soft_targets_and_weights_are_weighted_cross_entropy(make_batch):
    scores, pairs = make_batch(6, target=COLUMNS["target"], weight=COLUMNS["weight"])
    gaps = scores.rewards[pairs.chosen] - scores.rewards[pairs.rejected]
    target, weight = pairs.columns["target"].double(), pairs.columns["weight"].double()
    terms = functional.binary_cross_entropy_with_logits(gaps, target, weight=weight, reduction="sum")
    torch.testing.assert_close(Objective()(scores, pairs).loss, terms / 7.5)


def test_margin_target_and_weight_together_by_the_formula(make_batch):
    scores, pairs = make_batch(6, **COLUMNS)
    result = Objective(margin=ColumnMargin(2.0), target=LabelSmoothing(0.1))(scores, pairs)
    total = 0.0
    for i in range(6):
        gap = (scores.rewards[pairs.chosen[i]] - scores.rewards[pairs.rejected[i]]).item()
        margin, weight = 2 * COLUMNS["margin"][i], COLUMNS["weight"][i]
        target = 0.9 * COLUMNS["target"][i] + 0.1 * (1 - COLUMNS["target"][i])
        total -= weight * (target * log_expit(gap - margin) + (1 - target) * log_expit(-gap - margin))
    assert result.loss.item() == pytest.approx(total / 7.5, rel=1e-6)
    np.testing.assert_allclose(result.margins, 2 * np.array(COLUMNS["margin"]), rtol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_loss_is_the_same_when_every_reward_is_shifted(make_batch, name):
    scores, pairs = make_batch(6, **COLUMNS)
    shifted = Scores({**scores.tensors, "rewards": scores.rewards + 17.0})
    torch.testing.assert_close(EVERY[name](shifted, pairs).loss, EVERY[name](scores, pairs).loss)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 6), seed=st.integers(0, 1000), name=st.sampled_from(sorted(EVERY)))
def test_loss_does_not_depend_on_the_order_of_pairs(make_batch, n, seed, name):
    columns = {column: values[:n] for column, values in COLUMNS.items()}
    scores, pairs = make_batch(n, seed, **columns)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    plain, mixed = EVERY[name](scores, pairs), EVERY[name](scores, pairs.select(order))
    torch.testing.assert_close(mixed.loss, plain.loss)
    torch.testing.assert_close(mixed.margins, plain.margins[order])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_stable_for_ties_and_for_huge_gaps(make_batch, name, scale):
    scores, pairs = make_batch(6, dtype=torch.float32, **COLUMNS)
    rewards = (scale * scores.rewards.sign()).requires_grad_()
    result = EVERY[name](Scores({**scores.tensors, "rewards": rewards}), pairs)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert torch.isfinite(rewards.grad).all()


def test_duplicate_pairs_count_twice(make_batch):
    scores, pairs = make_batch(2, weight=[2.0, 1.0])
    doubled = pairs.select(torch.tensor([0, 0, 1]))
    doubled.columns["weight"] = torch.ones(3)
    torch.testing.assert_close(Objective()(scores, doubled).loss, Objective()(scores, pairs).loss)


@pytest.mark.parametrize("part", [InstanceMargin(), TransportMargin()])
def test_gradient_comes_through_the_gaps_alone_when_margins_are_detached(make_batch, part):
    scores, pairs = make_batch(6)
    scores = scores.map(lambda tensor: tensor.requires_grad_())
    result = Objective(margin=part)(scores, pairs)
    result.loss.backward()
    expected = -torch.sigmoid(-(result.gaps - result.margins)).detach() / 6
    np.testing.assert_allclose(scores.rewards.grad[pairs.chosen], expected, atol=1e-12)
    np.testing.assert_allclose(scores.rewards.grad[pairs.rejected], -expected, atol=1e-12)
    assert scores.embeddings.grad is None


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck_of_the_whole_loss(make_batch, name):
    """The transport plan is held fixed: its own dependence on the scores is left out, so it is frozen here."""
    scores, pairs = make_batch(3, **{column: values[:3] for column, values in COLUMNS.items()})
    objective = EVERY[name]
    if name in TRANSPORT:
        objective = Objective(margin=FrozenPlan(objective.margin, *scores.pairs(pairs)))

    def loss(rewards, embeddings):
        return objective(Scores({"rewards": rewards, "embeddings": embeddings}), pairs).loss

    inputs = (scores.rewards.requires_grad_(), scores.embeddings.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    analytic = torch.autograd.grad(EVERY[name](scores, pairs).loss, inputs[0])[0]
    torch.testing.assert_close(torch.autograd.grad(loss(*inputs), inputs[0])[0], analytic)


class FrozenPlan(Margin):
    """A transport margin whose plan is solved once."""

    def __init__(self, margin, chosen, rejected):
        super().__init__()
        self.margin = margin
        self.plan = margin.solve(chosen, rejected)[1]

    def forward(self, chosen, rejected, columns):
        moved = self.plan * self.margin.solve(chosen, rejected)[0]
        rows = len(moved)
        return {
            "conditional": rows * moved.sum(1),
            "mass": moved.sum(1),
            "diagonal": rows * moved.diagonal(),
            "total": moved.sum().expand(rows),
        }[self.margin.reading]


def losses_of_each_pair(objective: Objective, scores: Scores, pairs: Pairs) -> list[torch.Tensor]:
    """Each pair's loss in the batch: a weight of 1 on it and 0 on the others picks it out of the mean."""
    losses = []
    for i in range(len(pairs)):
        weight = torch.zeros(len(pairs))
        weight[i] = 1
        columns = {**pairs.columns, "weight": weight}
        losses.append(objective(scores, Pairs(pairs.chosen, pairs.rejected, columns)).loss)
    return losses


@pytest.mark.parametrize("name", EVERY)
def test_separable_says_whether_other_pairs_matter(make_batch, name):
    """In separable objectives a pair's loss does not change with, nor send gradients to, the other pairs."""
    columns = {column: COLUMNS[column] for column in ("margin", "target")}
    scores, pairs = make_batch(6, **columns)
    rewards = scores.rewards.requires_grad_()
    leak, change = 0.0, 0.0
    for i, loss in enumerate(losses_of_each_pair(EVERY[name], scores, pairs)):
        gradient = torch.autograd.grad(loss, rewards)[0].abs()
        gradient[torch.stack([pairs.chosen[i], pairs.rejected[i]])] = 0
        leak = max(leak, gradient.max().item())
        alone = EVERY[name](scores, pairs.select(torch.tensor([i]))).loss
        change = max(change, (alone - loss).abs().item())
    assert EVERY[name].separable == (name in SEPARABLE)
    if EVERY[name].separable:
        assert leak == 0
        assert change < 1e-12
    else:
        assert change > 1e-3
        # The diagonal margin reads each pair's own cost; what the others change is the plan, which is held fixed.
        assert (leak > 1e-6) == (name != "diagonal")


def test_detached_transport_is_not_separable_either():
    assert not Objective(margin=TransportMargin()).separable


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_loss_is_the_weighted_mean_over_any_split(make_batch, name):
    scores, pairs = make_batch(6, **COLUMNS)
    parts = [pairs.select(torch.tensor(index)) for index in ([0, 4], [1], [2, 3, 5])]
    total = sum(SEPARABLE[name](scores, part).loss * part.columns["weight"].sum() for part in parts)
    torch.testing.assert_close(total / 7.5, SEPARABLE[name](scores, pairs).loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EVERY)
def test_low_precision_scores_are_promoted_first(make_batch, name, dtype):
    scores, pairs = make_batch(6, dtype=dtype, **COLUMNS)
    result = EVERY[name](scores, pairs)
    promoted = EVERY[name](scores.map(torch.Tensor.float), pairs)
    assert result.loss.dtype == result.gaps.dtype == result.margins.dtype == torch.float32
    assert torch.equal(result.loss, promoted.loss)


@pytest.mark.parametrize("name", EVERY)
def test_autocast_around_changes_nothing(make_batch, name):
    scores, pairs = make_batch(6, dtype=torch.float32, **COLUMNS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = EVERY[name](scores, pairs)
    assert torch.equal(inside.loss, EVERY[name](scores, pairs).loss)


def test_parts_run_with_autocast_off(make_batch):
    class Identity(Link):
        def pointwise(self, z):
            return torch.eye(len(z)) @ z

    scores, pairs = make_batch(6, dtype=torch.float32)
    objective = Objective(link=Identity())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective(scores, pairs)
    assert torch.equal(inside.loss, objective(scores, pairs).loss)


@pytest.mark.parametrize("name", EVERY)
def test_no_pairs_give_a_zero_that_hangs_on_the_scores(make_batch, name):
    scores, pairs = make_batch(0, **{column: [] for column in COLUMNS})
    rewards = scores.rewards.requires_grad_()
    loss = EVERY[name](scores, pairs).loss
    loss.backward()
    assert loss.item() == 0
    assert rewards.grad.shape == (0,)


def test_weights_of_zero_give_zero(make_batch):
    scores, pairs = make_batch(2, weight=[0.0, 0.0])
    assert Objective()(scores, pairs).loss.item() == 0


def test_shapes_that_would_broadcast_are_refused(make_batch):
    scores, pairs = make_batch(3)
    column_rewards = Scores({**scores.tensors, "rewards": scores.rewards[:, None]})
    with pytest.raises(ValueError, match=r"^rewards must have shape \(R,\).*got \(6, 1\)"):
        Objective()(column_rewards, pairs)
    for name, objective in (("margin", SEPARABLE["column"]), ("target", Objective()), ("weight", Objective())):
        wrong = Pairs(pairs.chosen, pairs.rejected, {name: torch.ones(3, 1)})
        with pytest.raises(ValueError, match=rf"^{name} must have shape \(3,\), one for each pair, got \(3, 1\)"):
            objective(scores, wrong)


def test_columns_are_required_before_training(make_batch):
    objective = Objective(margin=ColumnMargin())
    assert objective.columns == {"margin": "ColumnMargin"}
    objective.require(["weight", "margin"])
    with pytest.raises(UserError, match=r'^ColumnMargin needs the column "margin", which the data does not have: add'):
        objective.require({"target"})
    Objective().require([])
    assert Objective(margin=TransportMargin(), target=LabelSmoothing()).columns == {}


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (Objective(), "logistic, no margin"),
        (Objective(margin=ConstantMargin(0.27), target=HardTarget()), "logistic, constant margin 0.27, hard targets"),
        (Objective(margin=ColumnMargin(2.0)), "logistic, the data's margin x 2"),
        (Objective(target=LabelSmoothing()), "logistic, no margin, label smoothing 0.1"),
        (Objective(margin=InstanceMargin()), "logistic, instance margin (w_r 0.9, w_s 0.1, factor 1)"),
        (
            Objective(margin=TransportMargin()),
            "logistic, transport margin (w_r 0.9, w_s 0.1, epsilon 0.1, 50 iterations, conditional, factor 1)",
        ),
        (
            Objective(margin=TransportMargin(0.5, 0.5, 1.0, 9, "mass", 2.0, "dissimilarity", "centered", False)),
            (
                "logistic, transport margin (w_r 0.5, w_s 0.5, epsilon 1, 9 iterations, mass, factor 2, "
                "dissimilarity, centered rewards, no diagonal)"
            ),
        ),
    ],
)
def test_description(objective, words):
    assert objective.describe() == words
