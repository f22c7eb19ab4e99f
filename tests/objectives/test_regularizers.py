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
WITH_A_PLACE = ("centering", "bsr", "positive")  # these are there to take the shift's freedom away
BATCH_WIDE = ("bsr", "positive", "odin")


@pytest.fixture(scope="session")
def make_full_batch(make_batch):
    """make_full_batch(n, seed=0, dtype=float64, weight=None): with every tensor and column that a part asks for."""

    def make(n: int, seed: int = 0, dtype: torch.dtype = torch.float64, weight=None) -> tuple[Scores, Pairs]:
        scores, pairs = make_batch(n, seed, dtype)
        draw = np.random.default_rng(seed)
        extra = {
            "kl": draw.exponential(size=2 * n),
            "log_probability": -10 * draw.exponential(size=2 * n),
            "quality_rewards": draw.normal(size=2 * n),
            "length_rewards": draw.normal(size=2 * n),
            "head_overlap": np.full(2 * n, 0.3),
        }
        columns = {
            f"{side}_{name}": draw.integers(25, 40, n)
            for side in ("chosen", "rejected")
            for name in ("length", "suffix")
        }
        tensors = {name: torch.tensor(column, dtype=torch.float32) for name, column in columns.items()}
        tensors["index"] = torch.arange(n) + 100 * seed
        if weight is not None:
            tensors["weight"] = torch.tensor(weight)
        scores = Scores({**scores.tensors, **{name: torch.tensor(value, dtype=dtype) for name, value in extra.items()}})
        return scores, Pairs(pairs.chosen, pairs.rejected, tensors)

    return make


def term_of(part, scores, pairs) -> torch.Tensor:
    """What the part adds to Bradley–Terry."""
    return Objective(regularizers=[part])(scores, pairs).loss - Objective()(scores, pairs).loss


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


def test_random_constraint_hangs_on_the_index_alone(make_full_batch):
    scores, pairs = make_full_batch(6)
    part = PriorConstraint("random")
    bounds = part.bounds(*scores.pairs(pairs), pairs.columns)
    assert term_of(part, scores, pairs).item() == pytest.approx(constraint(scores, pairs, bounds.tolist()))
    torch.manual_seed(5)
    order = torch.tensor([3, 0])
    few = pairs.select(order)
    assert torch.equal(part.bounds(*scores.pairs(few), few.columns), bounds[order])


def test_random_bounds_are_uniform_and_independent_between_neighbours():
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
def test_shift_invariance_holds_only_where_rewards_get_no_place(make_full_batch, shift, seed, name):
    scores, pairs = make_full_batch(5, seed)
    names = ("rewards", "quality_rewards", "length_rewards")
    shifted = Scores({**scores.tensors, **{key: scores.tensors[key] + shift for key in names}})
    before, after = (term_of(EVERY[name], moved, pairs).item() for moved in (scores, shifted))
    if name not in WITH_A_PLACE:
        assert after == pytest.approx(before, abs=1e-7)
    elif name == "positive":
        assert after < before
    else:
        far = Scores({**shifted.tensors, "rewards": scores.rewards + 1000})
        assert term_of(EVERY[name], far, pairs).item() > 100 * before


@QUIET
@given(n=st.integers(1, 6), seed=st.integers(0, 99), name=st.sampled_from(sorted(EVERY)))
def test_order_of_pairs_does_not_count(make_full_batch, n, seed, name):
    scores, pairs = make_full_batch(n, seed, weight=WEIGHT[:n])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(term_of(EVERY[name], scores, pairs.select(order)), term_of(EVERY[name], scores, pairs))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_finite_for_ties_huge_rewards_and_few_pairs(make_full_batch, name, scale, n):
    scores, pairs = make_full_batch(n, dtype=torch.float32)
    moved = scores.map(lambda tensor: (scale * tensor.sign()).requires_grad_())
    result = Objective(regularizers=[EVERY[name]])(moved, pairs)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert all(tensor.grad is None or torch.isfinite(tensor.grad).all() for tensor in moved.tensors.values())
    assert moved.rewards.grad is not None


@pytest.mark.parametrize("name", EVERY)
def test_duplicate_pairs_count_as_their_weight(make_full_batch, name):
    scores, pairs = make_full_batch(3)
    repeated = pairs.select(torch.tensor([0, 0, 0, 1]))
    weighted = Pairs(pairs.chosen, pairs.rejected, {**pairs.columns, "weight": torch.tensor([3.0, 1.0, 0.0])})
    torch.testing.assert_close(term_of(EVERY[name], scores, weighted), term_of(EVERY[name], scores, repeated))


@pytest.mark.parametrize("name", EVERY)
def test_no_pairs_or_no_weight_add_nothing(make_full_batch, name):
    for scores, pairs in (make_full_batch(0), make_full_batch(2, weight=[0.0, 0.0])):
        rewards = scores.rewards.requires_grad_()
        loss = Objective(regularizers=[EVERY[name]])(scores, pairs).loss
        loss.backward()
        assert loss.item() == 0
        assert not rewards.grad.any()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_promoted_before_anything_is_computed(make_full_batch, name, dtype):
    scores, pairs = make_full_batch(5, dtype=dtype)
    objective = Objective(regularizers=[EVERY[name]])
    assert objective(scores, pairs).loss.dtype == torch.float32
    assert torch.equal(objective(scores, pairs).loss, objective(scores.map(torch.Tensor.float), pairs).loss)


@pytest.mark.parametrize("name", EVERY)
def test_separable_means_a_weighted_mean_over_any_split(make_full_batch, name):
    scores, pairs = make_full_batch(6, weight=WEIGHT)
    objective = Objective(regularizers=[EVERY[name]])
    parts = [pairs.select(torch.tensor(index)) for index in ([0, 4], [1], [2, 3, 5])]
    total = sum(objective(scores, part).loss * part.columns["weight"].sum() for part in parts) / 7.5
    same = torch.isclose(total, objective(scores, pairs).loss, rtol=1e-9)
    assert objective.separable == same == (name not in BATCH_WIDE)


@pytest.mark.parametrize(
    ("part", "columns", "tensors"),
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
def test_parts_say_what_they_need(part, columns, tensors):
    assert (part.columns, part.tensors) == (columns, tensors)
    if tensors:
        with pytest.raises(UserError, match=rf'^{type(part).__name__} needs "{tensors[0]}" from the model'):
            Objective(regularizers=[part]).require(columns, ["rewards", "embeddings"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Centering(-1.0), "^coefficient must be a finite number of at least 0, got -1.0"),
        (lambda: BatchSum(float("nan")), "^coefficient must be a finite number of at least 0"),
        (lambda: Positive(-0.1), "^coefficient must be a finite number of at least 0"),
        (lambda: Text(alpha=1.5), r"^alpha must be from 0 to 1, got 1\.5"),
        (lambda: Text(beta=0.0), "^beta must be a finite number above 0"),
        (lambda: InformationBottleneck(-1.0), "^beta must be a finite number of at least 0"),
        (lambda: LengthDecorrelation(length_weight=-1.0), "^length_weight must be"),
        (lambda: LengthDecorrelation(overlap_weight=-1.0), "^overlap_weight must be"),
        (lambda: PriorConstraint("size"), "^similarity must be one of length, cosine, fixed, random, got 'size'"),
        (lambda: PriorConstraint(beta1=0.0), "^beta1 must be a finite number above 0"),
        (lambda: PriorConstraint(beta3=float("inf")), "^beta3 must be a finite number, got inf"),
        (lambda: PriorConstraint("fixed", beta1=1.0), r"^beta1 must be null with the similarity fixed, got 1\.0"),
    ],
)
def test_options_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Centering(), "centering 0.01"),
        (BatchSum(), "batch sum 0.001"),
        (Positive(), "positive 0.1"),
        (Text(), "text (alpha 0.01, beta 0.1)"),
        (InformationBottleneck(), "information bottleneck 0.1"),
        (LengthDecorrelation(), "length decorrelation (length 1, overlap 1)"),
        (PriorConstraint(), "prior constraint (length, beta1 10, beta3 -5)"),
        (PriorConstraint("cosine"), "prior constraint (cosine, beta1 30, beta3 -25)"),
        (PriorConstraint("random"), "prior constraint (random)"),
    ],
)
def test_description(part, words):
    assert part.describe() == words
