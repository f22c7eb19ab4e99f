from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from aplot_lightning.errors import UserError
from aplot_lightning.objectives import (
    ColumnMargin,
    ConstantMargin,
    InstanceMargin,
    NoMargin,
    Objective,
    TransportMargin,
)
from aplot_lightning.transport import transport_cost, transport_margin, transport_plan
from aplot_lightning.types import Scores


def margins_of(component, scores, pairs):
    return component(*scores.pairs(pairs), pairs.columns)


def numpy_cost(scores, pairs, w_r=0.9, w_s=0.1, sign=1.0, centered=False):
    chosen, rejected = scores.pairs(pairs)
    a, b = chosen.rewards.numpy(), rejected.rewards.numpy()
    if centered:
        a, b = (a - b) / 2, (b - a) / 2
    h, k = (side.embeddings.numpy() / np.linalg.norm(side.embeddings, axis=1)[:, None] for side in (chosen, rejected))
    cosine = np.einsum("id,jd->ij", h, k)
    return w_r * (1 - expit(np.abs(np.subtract.outer(a, b)))) + w_s * (cosine if sign > 0 else 1 - cosine)


def numpy_plan(cost, epsilon=0.1, iterations=50):
    uniform = np.full(len(cost), 1 / len(cost))
    return ot.sinkhorn(
        uniform, uniform, cost, epsilon, method="sinkhorn_log", numItermax=iterations, stopThr=0, warn=False
    )


def test_no_margin_and_constant_margin(make_batch):
    scores, pairs = make_batch(4)
    assert margins_of(NoMargin(), scores, pairs).tolist() == [0.0] * 4
    assert margins_of(ConstantMargin(0.27), scores, pairs).tolist() == [0.27] * 4


def test_column_margin_is_the_scaled_column(make_batch):
    scores, pairs = make_batch(3, margin=[0.5, 1.0, -2.0])
    assert margins_of(ColumnMargin(), scores, pairs).tolist() == [0.5, 1.0, -2.0]
    assert margins_of(ColumnMargin(2.0), scores, pairs).tolist() == [1.0, 2.0, -4.0]


def test_column_margin_without_its_column_says_how_to_fix_it(make_batch):
    with pytest.raises(UserError, match=r'^ColumnMargin needs the column "margin".*add "margin" to the rows of data'):
        margins_of(ColumnMargin(), *make_batch(3))


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_instance_margin_is_the_pairs_own_cost(make_batch, n, sign):
    scores, pairs = make_batch(n)
    term = "similarity" if sign > 0 else "dissimilarity"
    component = InstanceMargin(reward_weight=0.6, similarity_weight=0.3, factor=2.0, similarity_term=term)
    expected = 2 * numpy_cost(scores, pairs, 0.6, 0.3, sign).diagonal()
    np.testing.assert_allclose(margins_of(component, scores, pairs), expected, atol=1e-12)


def test_transport_margin_with_its_defaults(make_batch):
    scores, pairs = make_batch(6)
    cost = numpy_cost(scores, pairs)
    expected = 6 * (numpy_plan(cost) * cost).sum(axis=1)
    np.testing.assert_allclose(margins_of(TransportMargin(), scores, pairs), expected, atol=1e-12)


@pytest.mark.parametrize("reading", ["conditional", "mass", "diagonal", "total"])
def test_transport_margin_passes_every_option_on(make_batch, reading):
    scores, pairs = make_batch(5)
    component = TransportMargin(0.5, 0.2, 0.05, 3, reading, 1.5, "dissimilarity", "centered")
    cost = numpy_cost(scores, pairs, 0.5, 0.2, sign=-1, centered=True)
    plan = numpy_plan(cost, 0.05, 3)
    solved_cost, solved_plan = component.solve(*scores.pairs(pairs))
    np.testing.assert_allclose(solved_cost, cost, atol=1e-12)
    np.testing.assert_allclose(solved_plan, plan, atol=1e-12)
    moved = plan * cost
    expected = {
        "conditional": 5 * moved.sum(axis=1),
        "mass": moved.sum(axis=1),
        "diagonal": 5 * moved.diagonal(),
        "total": np.full(5, moved.sum()),
    }[reading]
    np.testing.assert_allclose(margins_of(component, scores, pairs), 1.5 * expected, atol=1e-12)


def test_centered_rewards_ignore_an_offset_of_the_prompt(make_batch):
    scores, pairs = make_batch(6)
    offset = torch.empty(12, dtype=torch.float64)
    offset[pairs.chosen] = offset[pairs.rejected] = torch.linspace(-3, 3, 6, dtype=torch.float64)
    moved = Scores({**scores.tensors, "rewards": scores.rewards + offset})
    centered, raw = TransportMargin(rewards="centered"), TransportMargin()
    np.testing.assert_allclose(margins_of(centered, moved, pairs), margins_of(centered, scores, pairs), atol=1e-12)
    assert (margins_of(raw, moved, pairs) - margins_of(raw, scores, pairs)).abs().max() > 0.01


def test_without_diagonal(make_batch):
    scores, pairs = make_batch(5)
    cost, plan = TransportMargin(diagonal=False).solve(*scores.pairs(pairs))
    assert plan.diagonal().abs().max() == 0
    np.testing.assert_allclose(
        margins_of(TransportMargin(diagonal=False), scores, pairs),
        transport_margin(cost, transport_plan(cost, diagonal=False)),
    )
    scores, pairs = make_batch(1)
    margins = margins_of(TransportMargin(diagonal=False), scores, pairs)
    np.testing.assert_allclose(margins, numpy_cost(scores, pairs).diagonal(), atol=1e-12)


def test_one_pair_has_the_instance_margin(make_batch):
    scores, pairs = make_batch(1)
    assert margins_of(TransportMargin(), scores, pairs) == pytest.approx(margins_of(InstanceMargin(), scores, pairs))


def test_flat_direction(make_batch):
    scores, pairs = make_batch(6)
    scaled = TransportMargin(reward_weight=0.9 * 4, similarity_weight=0.1 * 4, epsilon=0.1 * 4, factor=1 / 4)
    expected = margins_of(TransportMargin(), scores, pairs)
    np.testing.assert_allclose(margins_of(scaled, scores, pairs), expected, atol=1e-12)


@pytest.mark.parametrize("component", [InstanceMargin, TransportMargin])
def test_gradient_only_when_asked_for(make_batch, component):
    scores, pairs = make_batch(4)
    scores = scores.map(lambda tensor: tensor.requires_grad_())
    assert not margins_of(component(), scores, pairs).requires_grad
    margins_of(component(detach=False), scores, pairs).sum().backward()
    assert scores.rewards.grad.abs().max() > 0
    assert scores.embeddings.grad.abs().max() > 0


def test_gradient_of_the_transport_margin_holds_the_plan_fixed(make_batch):
    scores, pairs = make_batch(4)
    scores = scores.map(lambda tensor: tensor.requires_grad_())
    chosen, rejected = scores.pairs(pairs)
    cost = transport_cost(chosen.rewards, rejected.rewards, chosen.embeddings, rejected.embeddings)
    expected = torch.autograd.grad((4 * transport_plan(cost).detach() * cost).sum(), scores.rewards)
    margins = margins_of(TransportMargin(detach=False), scores, pairs)
    np.testing.assert_allclose(torch.autograd.grad(margins.sum(), scores.rewards)[0], expected[0], atol=1e-12)


# The queue


def queued(size=4, **options):
    return TransportMargin(support="queue", queue_size=size, **options)


def by_hand(scores, pairs, older_rewards, older_embeddings):
    """Conditional margins against the pairs' own rejected responses and the older ones, by numpy and POT."""
    chosen, rejected = scores.pairs(pairs)
    rewards = np.concatenate([rejected.rewards.numpy(), older_rewards])
    embeddings = np.concatenate([rejected.embeddings.numpy(), older_embeddings])
    h, k = (x / np.linalg.norm(x, axis=1)[:, None] for x in (chosen.embeddings.numpy(), embeddings))
    cost = 0.9 * (1 - expit(np.abs(np.subtract.outer(chosen.rewards.numpy(), rewards)))) + 0.1 * h @ k.T
    rows, columns = (np.full(count, 1 / count) for count in cost.shape)
    plan = ot.sinkhorn(rows, columns, cost, 0.1, method="sinkhorn_log", numItermax=50, stopThr=0, warn=False)
    return len(chosen) * (plan * cost).sum(axis=1)


def test_the_plan_covers_the_queue_and_the_own_rejected_responses(make_batch):
    component, rewards, embeddings = queued(), np.zeros(0), np.zeros((0, 6))
    for seed, n in enumerate((3, 2, 5, 1)):
        scores, pairs = make_batch(n, seed)
        expected = by_hand(scores, pairs, rewards, embeddings)
        np.testing.assert_allclose(margins_of(component, scores, pairs), expected, atol=1e-12)
        _, rejected = scores.pairs(pairs)
        rewards = np.concatenate([rejected.rewards, rewards])[:4]
        embeddings = np.concatenate([rejected.embeddings, embeddings])[:4]
        held = component.queue.contents()
        np.testing.assert_array_equal(held[0], rewards)
        np.testing.assert_array_equal(held[1], embeddings)


def test_an_empty_queue_is_transport_inside_the_micro_batch(make_batch):
    for n in (1, 5):
        scores, pairs = make_batch(n)
        expected = margins_of(TransportMargin(), scores, pairs)
        torch.testing.assert_close(margins_of(queued(), scores, pairs), expected)


@pytest.mark.parametrize("reading", ["conditional", "mass", "total"])
def test_queue_passes_the_reading_on(make_batch, reading):
    component = queued(reading=reading, factor=2.0)
    margins_of(component, *make_batch(4, 0))
    scores, pairs = make_batch(3, 1)
    cost, plan = component.solve(*scores.pairs(pairs))
    assert cost.shape == plan.shape == (3, 7)
    np.testing.assert_allclose(plan.sum(1), 1 / 3)
    np.testing.assert_allclose(plan.sum(0), 1 / 7, atol=1e-6)
    moved = plan * cost
    expected = {"conditional": 3 * moved.sum(1), "mass": moved.sum(1), "total": moved.sum().expand(3)}[reading]
    np.testing.assert_allclose(margins_of(component, scores, pairs), 2 * expected, atol=1e-12)


def test_queue_holds_centered_rewards_where_these_enter_the_cost(make_batch):
    component = queued(rewards="centered")
    scores, pairs = make_batch(3)
    chosen, rejected = scores.pairs(pairs)
    margins_of(component, scores, pairs)
    torch.testing.assert_close(component.queue.contents()[0], (rejected.rewards - chosen.rewards) / 2)


def test_queue_advances_once_a_step_only_while_training(make_batch):
    component = queued(6)
    scores, pairs = make_batch(2, 0)
    margins_of(component.eval(), scores, pairs)
    with torch.no_grad():  # the objective's second call, for the log
        margins_of(component.train(), scores, pairs)
    component.solve(*scores.pairs(pairs))
    margins_of(component, *make_batch(0))
    assert component.queue.count.item() == 0
    margins_of(component, scores, pairs)
    assert component.queue.count.item() == 2
    held = component.queue.contents()[0]
    with torch.no_grad():
        margins_of(component, *make_batch(2, 1))
    assert torch.equal(component.queue.contents()[0], held)


def test_a_step_of_the_queue_is_one_pass_over_the_micro_batches(make_batch):
    """By the trainer's own step: one forward per micro-batch, and every rejected response in the queue."""
    from aplot_lightning.training.gradient_cache import whole_batch_step
    from aplot_lightning.types import Batch

    head = torch.nn.Linear(6, 1, bias=False)
    objective, calls = Objective(margin=queued(64)), []
    batches = []
    for seed in range(3):
        scores, pairs = make_batch(4, seed, dtype=torch.float32)
        pairs.columns["index"] = torch.arange(4 * seed, 4 * seed + 4)
        tokens = torch.full((8, 1), seed)
        batches.append((Batch(tokens, torch.ones_like(tokens), torch.zeros(8, dtype=torch.int64), pairs), scores))

    def score(batch):
        calls.append(int(batch.input_ids[0, 0]))
        embeddings = batches[calls[-1]][1].embeddings
        return Scores({"rewards": head(embeddings).squeeze(1), "embeddings": embeddings})

    step = whole_batch_step(score, objective, [batch for batch, _ in batches])
    step.loss.backward()
    assert calls == [0, 1, 2]
    assert objective.separable
    assert objective.margin.queue.count.item() == 12
    cost, plan = objective.margin.solve(*step.scores.pairs(step.pairs))
    assert cost.shape == plan.shape == (12, 24)


def test_queue_is_detached_and_the_gradient_only_the_own_pairs(make_batch):
    component = queued(detach=False)
    leaves = []
    for seed in range(2):
        scores, pairs = make_batch(3, seed)
        leaves.append(scores.map(lambda tensor: tensor.requires_grad_()))
        margins = margins_of(component, leaves[-1], pairs)
    assert not any(tensor.requires_grad for tensor in component.queue.buffers())
    margins.sum().backward()
    assert leaves[0].rewards.grad is None
    assert leaves[1].rewards.grad.abs().max() > 0
    assert leaves[1].embeddings.grad.abs().max() > 0
    assert not margins_of(queued(), leaves[1], pairs).requires_grad


def test_queue_resumes_from_its_state(make_batch):
    component, again = queued(), queued()
    for seed in range(3):
        margins_of(component, *make_batch(3, seed))
    again.load_state_dict(component.state_dict())
    later = make_batch(3, 9)
    assert torch.equal(margins_of(again, *later), margins_of(component, *later))
    assert torch.equal(again.queue.contents()[1], component.queue.contents()[1])
    again.load_state_dict(queued().state_dict())  # an empty one, over a full one
    torch.testing.assert_close(margins_of(again, *later), margins_of(TransportMargin(), *later))


@pytest.mark.parametrize("size", [2, 7])
def test_queue_of_another_size_takes_the_newest_of_a_state(make_batch, size):
    component, other = queued(4), queued(size)
    margins_of(component, *make_batch(6))
    saved = {name: tensor.clone() for name, tensor in component.state_dict().items()}
    other.load_state_dict(saved)
    kept = min(size, 4)
    assert torch.equal(other.queue.contents()[0], component.queue.contents()[0][:kept])
    margins_of(other, *make_batch(1))
    assert other.queue.count.item() == min(size, 5)
    assert other.queue.embeddings.shape == (size, 6)


def test_queue_of_half_precision_scores_is_float32(make_batch):
    objective = Objective(margin=queued()).to(torch.bfloat16)
    for seed in range(2):
        scores, pairs = make_batch(3, seed, dtype=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = objective(scores.map(lambda tensor: tensor.requires_grad_()), pairs)
    held = objective.to(torch.bfloat16).margin.queue.contents()
    assert held[0].dtype == held[1].dtype == result.margins.dtype == torch.float32
    assert torch.equal(held[0][:3], scores.rewards[pairs.rejected].float())


def test_without_a_queue_there_is_no_state_and_no_separability():
    assert not TransportMargin().state_dict()
    assert not TransportMargin().separable
    assert sorted(queued().state_dict()) == ["queue.count", "queue.embeddings", "queue.rewards"]


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 5), size=st.integers(1, 6), seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1.0, 1e4]))
def test_queue_stays_finite_for_ties_duplicates_and_huge_gaps(make_batch, n, size, seed, scale):
    component = queued(size, detach=False)
    for step in range(3):
        scores, pairs = make_batch(n, seed + step, dtype=torch.float32)
        leaves = Scores({**scores.tensors, "rewards": scale * scores.rewards}).map(lambda t: t.requires_grad_())
        doubled = pairs.select(torch.arange(2 * n) % n)
        result = Objective(margin=component)(leaves, doubled)
        result.loss.backward()
        assert torch.isfinite(result.margins).all()
        assert all(torch.isfinite(tensor.grad).all() for tensor in leaves.tensors.values())
