from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from scipy.special import expit

from aplot_lightning.errors import UserError
from aplot_lightning.objectives import ColumnMargin, ConstantMargin, InstanceMargin, NoMargin, TransportMargin
from aplot_lightning.transport import transport_cost, transport_margin, transport_plan
from aplot_lightning.types import Scores


def margins_of(part, scores, pairs):
    return part(*scores.pairs(pairs), pairs.columns)


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


def test_column_margin_without_its_column_says_how_to_mend_it(make_batch):
    with pytest.raises(UserError, match=r'^ColumnMargin needs the column "margin".*add "margin" to the rows of data'):
        margins_of(ColumnMargin(), *make_batch(3))


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_instance_margin_is_the_pairs_own_cost(make_batch, n, sign):
    scores, pairs = make_batch(n)
    term = "similarity" if sign > 0 else "dissimilarity"
    part = InstanceMargin(reward_weight=0.6, similarity_weight=0.3, factor=2.0, similarity_term=term)
    expected = 2 * numpy_cost(scores, pairs, 0.6, 0.3, sign).diagonal()
    np.testing.assert_allclose(margins_of(part, scores, pairs), expected, atol=1e-12)


def test_transport_margin_with_its_defaults(make_batch):
    scores, pairs = make_batch(6)
    cost = numpy_cost(scores, pairs)
    expected = 6 * (numpy_plan(cost) * cost).sum(axis=1)
    np.testing.assert_allclose(margins_of(TransportMargin(), scores, pairs), expected, atol=1e-12)


@pytest.mark.parametrize("reading", ["conditional", "mass", "diagonal", "total"])
def test_transport_margin_passes_every_option_on(make_batch, reading):
    scores, pairs = make_batch(5)
    part = TransportMargin(0.5, 0.2, 0.05, 3, reading, 1.5, "dissimilarity", "centered")
    cost = numpy_cost(scores, pairs, 0.5, 0.2, sign=-1, centered=True)
    plan = numpy_plan(cost, 0.05, 3)
    solved_cost, solved_plan = part.solve(*scores.pairs(pairs))
    np.testing.assert_allclose(solved_cost, cost, atol=1e-12)
    np.testing.assert_allclose(solved_plan, plan, atol=1e-12)
    moved = plan * cost
    expected = {
        "conditional": 5 * moved.sum(axis=1),
        "mass": moved.sum(axis=1),
        "diagonal": 5 * moved.diagonal(),
        "total": np.full(5, moved.sum()),
    }[reading]
    np.testing.assert_allclose(margins_of(part, scores, pairs), 1.5 * expected, atol=1e-12)


def test_centered_rewards_do_not_see_what_a_prompt_gives_to_both_sides(make_batch):
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


@pytest.mark.parametrize("part", [InstanceMargin, TransportMargin])
def test_gradient_only_when_asked_for(make_batch, part):
    scores, pairs = make_batch(4)
    scores = scores.map(lambda tensor: tensor.requires_grad_())
    assert not margins_of(part(), scores, pairs).requires_grad
    margins_of(part(detach=False), scores, pairs).sum().backward()
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


@pytest.mark.parametrize("part", [InstanceMargin(), TransportMargin(), NoMargin(), ConstantMargin(1.0)])
def test_no_pairs_no_margins(make_batch, part):
    assert margins_of(part, *make_batch(0)).shape == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantMargin(float("nan")), "^value must be a finite number"),
        (lambda: ColumnMargin(float("inf")), "^scale must be a finite number"),
        (lambda: InstanceMargin(reward_weight=-1.0), "^reward_weight must be"),
        (lambda: InstanceMargin(factor=-1.0), "^factor must be a finite number of at least 0, got -1.0"),
        (lambda: TransportMargin(similarity_weight=-1.0), "^similarity_weight must be"),
        (lambda: TransportMargin(epsilon=-0.1), "^epsilon must be a finite number above 0, got -0.1"),
        (lambda: TransportMargin(iterations=0), "^iterations must be"),
        (lambda: TransportMargin(reading="rows"), "^reading must be one of conditional, mass, diagonal, total"),
        (lambda: TransportMargin(factor=float("nan")), "^factor must be"),
        (lambda: TransportMargin(similarity_term="x"), "^similarity_term must be one of similarity, dissimilarity"),
        (lambda: TransportMargin(rewards="x"), "^rewards must be one of raw, centered, got 'x'"),
        (lambda: TransportMargin(reading="diagonal", diagonal=False), "^diagonal must be true"),
    ],
)
def test_options_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
