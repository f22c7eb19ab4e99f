from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_expit

from aplot_lightning.errors import UserError
from aplot_lightning.objectives import (
    Centering,
    ColumnMargin,
    EnsembleObjective,
    InstanceMargin,
    LabelSmoothing,
    Norm,
    Objective,
    PartialTransport,
    TransportMargin,
)
from aplot_lightning.types import Scores

COLUMNS = {"margin": [0.1, 0.5, 0.0, 1.0, 2.0, 0.3], "weight": [1.0, 0.5, 2.0, 1.0, 0.0, 3.0]}
COMPOSED = {
    "bt": {},
    "margin": {"margin": ColumnMargin(), "target": LabelSmoothing(0.1)},
    "aplot": {"margin": TransportMargin(detach=False)},
    "instance": {"margin": InstanceMargin()},
    "selective": {"weighting": PartialTransport(0.7)},
    "centering": {"regularizers": [Centering()]},
}


def with_members(scores, members=3, seed=0):
    """Scores of K members, whose mean is the reward."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(scores), members, generator=generator, dtype=torch.float64).to(scores.rewards)
    rewards = scores.rewards[:, None] + noise
    return Scores({**scores.tensors, "member_rewards": rewards, "rewards": rewards.mean(1)})


def test_bradley_terry_of_members_by_numpy(make_batch):
    scores, pairs = make_batch(6)
    scores = with_members(scores)
    members = scores.tensors["member_rewards"].numpy()
    gaps = members[pairs.chosen] - members[pairs.rejected]
    result = EnsembleObjective()(scores, pairs)
    assert result.loss.item() == pytest.approx(-log_expit(gaps).mean())
    np.testing.assert_allclose(result.gaps, gaps.mean(axis=1), atol=1e-12)


@pytest.mark.parametrize("name", COMPOSED)
def test_each_member_has_the_composed_objective_of_its_own_rewards(make_batch, name):
    scores, pairs = make_batch(6, **COLUMNS)
    scores = with_members(scores)
    alone = Objective(**COMPOSED[name])
    losses = [alone(Scores({**scores.tensors, "rewards": r}), pairs).loss for r in scores.tensors["member_rewards"].T]
    result = EnsembleObjective(**COMPOSED[name])(scores, pairs)
    torch.testing.assert_close(result.loss, torch.stack(losses).mean())
    mean = alone(scores, pairs)  # its rewards are the members' mean
    torch.testing.assert_close(result.gaps, mean.gaps)
    torch.testing.assert_close(result.margins, mean.margins)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(0, 5), seed=st.integers(0, 1000), name=st.sampled_from(sorted(COMPOSED)))
def test_one_member_is_the_plain_objective(make_batch, n, seed, name):
    scores, pairs = make_batch(n, seed, **{column: values[:n] for column, values in COLUMNS.items()})
    single = Scores({**scores.tensors, "member_rewards": scores.rewards[:, None]})
    plain, ensemble = Objective(**COMPOSED[name])(scores, pairs), EnsembleObjective(**COMPOSED[name])(single, pairs)
    torch.testing.assert_close(ensemble.loss, plain.loss)
    torch.testing.assert_close(ensemble.margins, plain.margins)


@pytest.mark.parametrize("name", ["bt", "margin", "centering", "instance"])
def test_gradcheck(make_batch, name):
    scores, pairs = make_batch(3, **{column: values[:3] for column, values in COLUMNS.items()})
    scores = with_members(scores)
    components = {**COMPOSED[name], **({"margin": InstanceMargin(detach=False)} if name == "instance" else {})}

    def loss(members):
        tensors = {"member_rewards": members, "rewards": members.mean(1), "embeddings": scores.embeddings}
        return EnsembleObjective(**components)(Scores(tensors), pairs).loss

    assert torch.autograd.gradcheck(loss, scores.tensors["member_rewards"].requires_grad_())


def test_every_member_gets_its_own_gradient(make_batch):
    scores, pairs = make_batch(4)
    members = with_members(scores).tensors["member_rewards"].requires_grad_()
    rewards = members.mean(1)
    tensors = {**scores.tensors, "member_rewards": members, "rewards": rewards}
    gradient = torch.autograd.grad(EnsembleObjective()(Scores(tensors), pairs).loss, members)[0]
    for k in range(3):
        own = members[:, k].detach().requires_grad_()
        expected = torch.autograd.grad(Objective()(Scores({**tensors, "rewards": own}), pairs).loss, own)[0] / 3
        torch.testing.assert_close(gradient[:, k], expected)


def test_members_are_required_of_the_model(make_batch):
    objective = EnsembleObjective(margin=ColumnMargin())
    assert objective.tensors == {"member_rewards": "EnsembleObjective"}
    objective.require(["margin"], {"rewards", "member_rewards"})
    with pytest.raises(UserError, match=r'^EnsembleObjective needs "member_rewards" from the model'):
        objective.require(["margin"], {"rewards"})
    scores, pairs = make_batch(3, margin=[0.0] * 3)
    with pytest.raises(UserError, match=r'^EnsembleObjective needs "member_rewards" from the model'):
        objective(scores, pairs)
    for wrong in (torch.zeros(6), torch.zeros(5, 2), torch.zeros(6, 0)):
        with pytest.raises(ValueError, match=r"^member_rewards must have shape \(6, K\) with K >= 1, got"):
            objective(Scores({**scores.tensors, "member_rewards": wrong}), pairs)


@pytest.mark.parametrize("components", [{"weighting": Norm()}, {"margin": TransportMargin(support="queue")}])
def test_components_with_state_are_refused(components):
    with pytest.raises(ValueError, match=r"^EnsembleObjective must be made of components without state, got (No|Tra)"):
        EnsembleObjective(**components)


def test_a_real_head_trains_every_member(make_batch):
    from aplot_lightning.model.heads import Ensemble, make_head

    scores, pairs = make_batch(6, dtype=torch.float32)
    head = make_head(Ensemble(members=3), 6, False, None, deviation=0.5, seed=0)
    before = head.rewards.weight.detach().clone()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        tensors = {**head(scores.embeddings), "embeddings": scores.embeddings}
        loss = EnsembleObjective()(Scores(tensors), pairs).loss
        loss.backward()
        optimizer.step()
    moved = head.rewards.weight.detach() - before
    assert loss < 0.5
    assert (moved[0] - moved[1]).abs().max() > 1e-2  # each its own way
