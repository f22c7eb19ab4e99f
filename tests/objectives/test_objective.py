from __future__ import annotations

import numpy as np
import pytest
import torch
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


def test_duplicate_pairs_count_twice(make_batch):
    scores, pairs = make_batch(2, weight=[2.0, 1.0])
    doubled = pairs.select(torch.tensor([0, 0, 1]))
    doubled.columns["weight"] = torch.ones(3)
    torch.testing.assert_close(Objective()(scores, doubled).loss, Objective()(scores, pairs).loss)


@pytest.mark.parametrize("component", [InstanceMargin(), TransportMargin()])
def test_gradient_comes_through_the_gaps_alone_when_margins_are_detached(make_batch, component):
    scores, pairs = make_batch(6)
    scores = scores.map(lambda tensor: tensor.requires_grad_())
    result = Objective(margin=component)(scores, pairs)
    result.loss.backward()
    expected = -torch.sigmoid(-(result.gaps - result.margins)).detach() / 6
    np.testing.assert_allclose(scores.rewards.grad[pairs.chosen], expected, atol=1e-12)
    np.testing.assert_allclose(scores.rewards.grad[pairs.rejected], -expected, atol=1e-12)
    assert scores.embeddings.grad is None


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck_of_the_whole_loss(make_batch, name):
    """The gradient treats the transport plan as a constant, so the plan is frozen here."""
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
    """Each pair's loss in the batch, selected by a weight of 1 on it and 0 on the others."""
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


def test_components_run_with_autocast_off(make_batch):
    class Identity(Link):
        def pointwise(self, z):
            return torch.eye(len(z)) @ z

    scores, pairs = make_batch(6, dtype=torch.float32)
    objective = Objective(link=Identity())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective(scores, pairs)
    assert torch.equal(inside.loss, objective(scores, pairs).loss)


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
