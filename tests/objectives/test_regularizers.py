from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_expit

from aplot_lightning.errors import UserError
from aplot_lightning.objectives import (
    BatchSum,
    Centering,
    ColumnMargin,
    InformationBottleneck,
    LengthDecorrelation,
    Objective,
    Positive,
    PriorConstraint,
    Text,
)
from aplot_lightning.objectives.regularizers.length_decorrelation import correlation
from aplot_lightning.objectives.regularizers.prior_constraint import uniform_of
from aplot_lightning.types import Pairs, Scores

QUIET = settings(deadline=None, max_examples=25)  # the machine may be busy with other runs
WEIGHT = [1.0, 0.5, 2.0, 1.0, 0.0, 3.0]
EVERY = {
    "centering": Centering(),
    "bsr": BatchSum(),
    "positive": Positive(),
    "text": Text(),
    "bottleneck": InformationBottleneck(),
    "odin": LengthDecorrelation(),
    "length": PriorConstraint(),
    "cosine": PriorConstraint("cosine"),
    "fixed": PriorConstraint("fixed"),
    "random": PriorConstraint("random"),
}
FIX_THE_LEVEL = ("centering", "bsr", "positive")  # these exist to make the level of the rewards matter


def term_of(component, scores, pairs) -> torch.Tensor:
    """What the regularizer adds to Bradley–Terry."""
    return Objective(regularizers=[component])(scores, pairs).loss - Objective()(scores, pairs).loss


def columns_of(scores, pairs, name):
    """The numpy values of one tensor of both sides."""
    return scores.tensors[name][pairs.chosen].numpy(), scores.tensors[name][pairs.rejected].numpy()


# TRL's RewardTrainer


@pytest.fixture(scope="module")
def trl_loss():
    """trl_loss(inputs, coefficient): the real compute_loss of TRL's RewardTrainer, and rewards of a random model."""
    from accelerate import Accelerator
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from trl.trainer.reward_trainer import RewardTrainer

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=50, num_labels=1, pad_token_id=0, initializer_range=0.5, **sizes)
    model = LlamaForSequenceClassification(config).eval()

    def compute(inputs: dict[str, torch.Tensor], coefficient: float | None) -> tuple[float, torch.Tensor]:
        trainer = SimpleNamespace(
            args=SimpleNamespace(center_rewards_coefficient=coefficient),
            accelerator=Accelerator(cpu=True),
            model=model,
            _metrics={"eval": defaultdict(list)},
            _total_train_tokens=0,
        )
        with torch.no_grad():
            loss, outputs = RewardTrainer.compute_loss(trainer, model, dict(inputs), return_outputs=True)
        return loss.item(), outputs.logits.squeeze(-1)

    return compute


@pytest.mark.parametrize("margin", [None, [0.5, 0.0, 2.0, -1.0, 0.3]])
@pytest.mark.parametrize("coefficient", [None, 0.01, 0.3])
def test_margin_and_centering_are_those_of_trls_reward_trainer(trl_loss, margin, coefficient):
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "input_ids": torch.randint(1, 50, (10, 7), generator=generator),
        "attention_mask": torch.ones(10, 7).long(),
    }
    columns = {}
    if margin is not None:
        columns["margin"] = inputs["margin"] = torch.tensor(margin)
    expected, rewards = trl_loss(inputs, coefficient)
    objective = Objective(
        margin=ColumnMargin() if margin is not None else None,
        regularizers=[Centering(coefficient)] if coefficient is not None else None,
    )
    scores = Scores({"rewards": rewards, "embeddings": rewards[:, None]})
    pairs = Pairs(torch.arange(5), torch.arange(5, 10), columns)
    assert rewards.std() > 0.05
    assert objective(scores, pairs).loss.item() == pytest.approx(expected, rel=1e-6)


# Formulas, in numpy


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_centering_by_its_formula(make_full_batch, weight):
    scores, pairs = make_full_batch(6, weight=weight)
    chosen, rejected = columns_of(scores, pairs, "rewards")
    expected = 0.3 * np.average((chosen + rejected) ** 2, weights=weight)
    assert term_of(Centering(0.3), scores, pairs).item() == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_batch_sum_by_both_forms_of_its_formula(make_full_batch, n):
    scores, pairs = make_full_batch(n)
    rewards = scores.rewards.numpy()
    term = term_of(BatchSum(0.5), scores, pairs).item()
    assert term == pytest.approx(0.5 * n * rewards.mean() ** 2)
    assert term == pytest.approx(0.5 * rewards.sum() ** 2 / (4 * n))


def test_batch_sum_counts_a_pair_of_weight_three_as_three(make_full_batch):
    scores, pairs = make_full_batch(3)
    repeated = pairs.select(torch.tensor([0, 0, 0, 1]))
    weighted = Pairs(pairs.chosen, pairs.rejected, {**pairs.columns, "weight": torch.tensor([3.0, 1.0, 0.0])})
    torch.testing.assert_close(term_of(BatchSum(0.5), scores, weighted), term_of(BatchSum(0.5), scores, repeated))


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_positive_by_its_formula(make_full_batch, weight):
    scores, pairs = make_full_batch(6, weight=weight)
    expected = -0.1 * log_expit(np.average(columns_of(scores, pairs, "rewards")[0], weights=weight))
    assert term_of(Positive(), scores, pairs).item() == pytest.approx(expected)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0])
def test_text_mixes_with_the_loss(make_full_batch, weight, alpha):
    scores, pairs = make_full_batch(6, weight=weight)
    text = np.average(-log_expit(0.1 * columns_of(scores, pairs, "log_probability")[0]), weights=weight)
    mixed = Objective(regularizers=[Text(alpha)])(scores, pairs).loss.item()
    assert mixed == pytest.approx((1 - alpha) * Objective()(scores, pairs).loss.item() + alpha * text)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_bottleneck_adds_up_both_sides(make_full_batch, weight):
    scores, pairs = make_full_batch(6, weight=weight)
    expected = 0.1 * np.average(np.add(*columns_of(scores, pairs, "kl")), weights=weight)
    assert term_of(InformationBottleneck(), scores, pairs).item() == pytest.approx(expected)


def constraint(scores, pairs, bounds, weight=None):
    gaps = np.subtract(*columns_of(scores, pairs, "rewards"))
    return np.average([-log_expit(bound - gap) for bound, gap in zip(bounds, gaps, strict=True)], weights=weight)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize(("betas", "beta1", "beta3"), [((), 10, -5), ((20.0, -15.0), 20, -15)])
def test_length_ratio_constraint_by_its_formula(make_full_batch, betas, beta1, beta3, weight):
    scores, pairs = make_full_batch(6, weight=weight)
    scores.rewards.mul_(20)  # so that the bounds bite
    bounds = []
    for one, two in zip(
        pairs.columns["chosen_suffix"].tolist(), pairs.columns["rejected_suffix"].tolist(), strict=True
    ):
        bounds.append(beta1 / (min(one, two) / max(one, two) + 0.001) + beta3)
    term = term_of(PriorConstraint("length", *betas), scores, pairs).item()
    assert term == pytest.approx(constraint(scores, pairs, bounds, weight), rel=1e-5)
    assert term > 1e-3


def test_length_ratio_without_any_suffix_is_one(make_full_batch):
    scores, pairs = make_full_batch(3)
    pairs.columns["chosen_suffix"] = torch.tensor([0.0, 0.0, 4.0])
    pairs.columns["rejected_suffix"] = torch.tensor([0.0, 5.0, 4.0])
    bounds = PriorConstraint().bounds(*scores.pairs(pairs), pairs.columns)
    np.testing.assert_allclose(bounds, [10 / 1.001 - 5, 10 / 0.001 - 5, 10 / 1.001 - 5])


def test_cosine_constraint_by_its_formula(make_full_batch):
    scores, pairs = make_full_batch(6)
    scores.rewards.mul_(20)
    bounds, cosines = [], []
    for h, k in zip(*columns_of(scores, pairs, "embeddings"), strict=True):
        cosines.append(h @ k / (np.linalg.norm(h) * np.linalg.norm(k)))
        likeness = (math.pi - math.acos(min(max(cosines[-1], 0.0), 1.0))) / math.pi
        bounds.append(30 / (likeness + 0.001) - 25)
    assert min(cosines) < 0 < max(cosines)
    assert term_of(PriorConstraint("cosine"), scores, pairs).item() == pytest.approx(constraint(scores, pairs, bounds))


def test_cosine_of_equal_opposite_and_zero_embeddings(make_full_batch):
    scores, pairs = make_full_batch(3)
    embeddings = torch.zeros(6, 6, dtype=torch.float64)
    embeddings[pairs.chosen[:2]] = 2.0
    embeddings[pairs.rejected[:2]] = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    moved = Scores({**scores.tensors, "embeddings": embeddings.requires_grad_()})
    bounds = PriorConstraint("cosine").bounds(*moved.pairs(pairs), pairs.columns)
    np.testing.assert_allclose(bounds, [30 / 1.001 - 25, 30 / 0.501 - 25, 30 / 0.501 - 25], rtol=1e-6)
    assert not bounds.requires_grad


def test_fixed_constraint_by_its_formula(make_full_batch):
    scores, pairs = make_full_batch(6)
    term = term_of(PriorConstraint("fixed"), scores, pairs).item()
    assert term == pytest.approx(constraint(scores, pairs, [3.0] * 6))


def test_random_constraint_depends_on_the_index_only(make_full_batch):
    scores, pairs = make_full_batch(6)
    component = PriorConstraint("random")
    bounds = component.bounds(*scores.pairs(pairs), pairs.columns)
    assert term_of(component, scores, pairs).item() == pytest.approx(constraint(scores, pairs, bounds.tolist()))
    torch.manual_seed(5)
    order = torch.tensor([3, 0])
    few = pairs.select(order)
    assert torch.equal(component.bounds(*scores.pairs(few), few.columns), bounds[order])


def test_random_bounds_are_uniform_and_independent_between_neighbors():
    drawn = uniform_of(torch.arange(20000)).numpy()
    assert 0 <= drawn.min() <= drawn.max() < 1
    assert len(np.unique(drawn)) > 19990
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.03
    assert uniform_of(torch.tensor([1])) != uniform_of(torch.tensor([1 + 2**32]))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0)])
def test_length_decorrelation_is_scipys_pearsonr(make_full_batch, weights, sign):
    scores, pairs = make_full_batch(6)
    scores.tensors["quality_rewards"].mul_(sign)
    lengths = np.concatenate([pairs.columns["chosen_length"], pairs.columns["rejected_length"]])
    quality, other = (np.concatenate(columns_of(scores, pairs, f"{name}_rewards")) for name in ("quality", "length"))
    spurious = abs(stats.pearsonr(quality, lengths).statistic) - stats.pearsonr(other, lengths).statistic
    expected = weights[0] * spurious + weights[1] * 0.3
    assert term_of(LengthDecorrelation(*weights), scores, pairs).item() == pytest.approx(expected, rel=1e-6)


def test_weighted_correlation_is_numpys():
    draw = np.random.default_rng(0)
    first, second, weights = draw.normal(size=(3, 9))
    weights = weights**2
    covariance = np.cov(first, second, aweights=weights)
    expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert correlation(*map(torch.tensor, (first, second, weights))).item() == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_correlation_with_a_constant_is_zero_without_slope(value):
    constant = torch.full((7,), value, requires_grad=True)
    varying = torch.arange(7.0, requires_grad=True)
    for one, two in ((constant, varying), (varying, constant), (constant, constant)):
        found = correlation(one, two, torch.ones(7))
        found.backward()
        assert found.item() == 0
    assert constant.grad.tolist() == varying.grad.tolist() == [0.0] * 7


def test_correlation_of_a_line_is_one():
    line = torch.arange(5.0)
    assert correlation(line, 3 * line + 1, torch.ones(5)).item() == pytest.approx(1)
    assert correlation(line, -line, torch.ones(5)).item() == pytest.approx(-1)


# Every regularizer


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck(make_full_batch, name):
    scores, pairs = make_full_batch(4, weight=WEIGHT[:4])
    scores.rewards.mul_(3)
    names = [key for key in scores.tensors if not (name == "cosine" and key == "embeddings")]  # detached by design

    def loss(*tensors):
        moved = Scores({**scores.tensors, **dict(zip(names, tensors, strict=True))})
        return Objective(regularizers=[EVERY[name]])(moved, pairs).loss

    assert torch.autograd.gradcheck(loss, [scores.tensors[key].clone().requires_grad_() for key in names])


@QUIET
@given(shift=st.floats(1, 50), seed=st.integers(0, 99), name=st.sampled_from(sorted(EVERY)))
def test_a_shift_matters_only_to_regularizers_that_fix_the_level(make_full_batch, shift, seed, name):
    scores, pairs = make_full_batch(5, seed)
    names = ("rewards", "quality_rewards", "length_rewards")
    shifted = Scores({**scores.tensors, **{key: scores.tensors[key] + shift for key in names}})
    before, after = (term_of(EVERY[name], moved, pairs).item() for moved in (scores, shifted))
    if name not in FIX_THE_LEVEL:
        assert after == pytest.approx(before, abs=1e-7)
    elif name == "positive":
        assert after < before
    else:
        far = Scores({**shifted.tensors, "rewards": scores.rewards + 1000})
        assert term_of(EVERY[name], far, pairs).item() > 100 * before


@pytest.mark.parametrize(
    ("component", "columns", "tensors"),
    [
        (Centering(), (), ()),
        (Text(), (), ("log_probability",)),
        (InformationBottleneck(), (), ("kl",)),
        (
            LengthDecorrelation(),
            ("chosen_length", "rejected_length"),
            ("quality_rewards", "length_rewards", "head_overlap"),
        ),
        (PriorConstraint(), ("chosen_suffix", "rejected_suffix"), ()),
        (PriorConstraint("random"), ("index",), ()),
        (PriorConstraint("cosine"), (), ()),
    ],
)
def test_components_state_what_they_need(component, columns, tensors):
    assert (component.columns, component.tensors) == (columns, tensors)
    if tensors:
        with pytest.raises(UserError, match=rf'^{type(component).__name__} needs "{tensors[0]}" from the model'):
            Objective(regularizers=[component]).require(columns, ["rewards", "embeddings"])
