"""What holds for every component, in an objective of its own: precision, stability, order, splits, options, names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aplot_lightning.objectives import (
    BatchSum,
    BetaLink,
    Centering,
    ColumnMargin,
    ConstantMargin,
    EnsembleObjective,
    Fidelity,
    Focal,
    HardTarget,
    Hinge,
    InformationBottleneck,
    InstanceMargin,
    LabelSmoothing,
    LengthDecorrelation,
    MinNorm,
    Norm,
    Objective,
    PartialTransport,
    Positive,
    PriorConstraint,
    Probit,
    Quality,
    Sorted,
    Text,
    TransportMargin,
)
from aplot_lightning.types import Pairs, Scores

COLUMNS = {
    "margin": [0.1, 0.5, 0.0, 1.0, 2.0, 0.3],
    "weight": [1.0, 0.5, 2.0, 1.0, 0.0, 3.0],
    "chosen_score": [4.0, 3.5, 2.0, 1.0, 9.0, 2.0],
    "rejected_score": [1.0, 3.0, 2.0, 4.5, -9.0, 1.0],
}
SOFT = {**COLUMNS, "target": [1.0, 0.8, 0.5, 0.1, 1.0, 0.9]}
READINGS = ("conditional", "mass", "diagonal", "total")
EVERY = {
    "bt": lambda: Objective(),
    "hinge": lambda: Objective(Hinge()),
    "focal": lambda: Objective(Focal(0.5)),
    "probit": lambda: Objective(Probit()),
    "probit-model": lambda: Objective(Probit("model")),
    "fidelity": lambda: Objective(Fidelity()),
    "fidelity-model": lambda: Objective(Fidelity("model")),
    "beta": lambda: Objective(BetaLink(0.5, 2.0, 3.0)),
    "constant": lambda: Objective(margin=ConstantMargin(0.3)),
    "column": lambda: Objective(margin=ColumnMargin()),
    "instance": lambda: Objective(margin=InstanceMargin(detach=False)),
    **{f"transport-{name}": lambda name=name: Objective(margin=TransportMargin(reading=name)) for name in READINGS},
    "centered": lambda: Objective(margin=TransportMargin(rewards="centered", diagonal=False, detach=False)),
    "smoothing": lambda: Objective(target=LabelSmoothing(0.2)),
    "hard": lambda: Objective(target=HardTarget()),
    "quality": lambda: Objective(target=Quality()),
    "sorted": lambda: Objective(coupling=Sorted()),
    "norm": lambda: Objective(weighting=Norm()),
    "min-norm": lambda: Objective(weighting=MinNorm()),
    "partial": lambda: Objective(weighting=PartialTransport(0.8)),
    "centering": lambda: Objective(regularizers=[Centering()]),
    "batch-sum": lambda: Objective(regularizers=[BatchSum()]),
    "positive": lambda: Objective(regularizers=[Positive()]),
    "text": lambda: Objective(regularizers=[Text()]),
    "bottleneck": lambda: Objective(regularizers=[InformationBottleneck()]),
    "decorrelation": lambda: Objective(regularizers=[LengthDecorrelation()]),
    "prior-length": lambda: Objective(regularizers=[PriorConstraint()]),
    "prior-cosine": lambda: Objective(regularizers=[PriorConstraint("cosine")]),
    "prior-fixed": lambda: Objective(regularizers=[PriorConstraint("fixed")]),
    "prior-random": lambda: Objective(regularizers=[PriorConstraint("random")]),
    "ensemble": lambda: EnsembleObjective(),
    "ensemble-transport": lambda: EnsembleObjective(margin=TransportMargin()),
}
BATCH_WIDE = {f"transport-{name}" for name in READINGS} | {
    *("centered", "sorted", "norm", "min-norm", "partial", "batch-sum", "positive", "decorrelation"),
    "ensemble-transport",
}
FIX_THE_LEVEL = {"centering", "batch-sum", "positive"}  # these exist to make the level of the rewards matter


def columns_for(name: str) -> dict[str, list[float]]:
    return COLUMNS if name == "sorted" else SOFT


def leaves(scores: Scores) -> Scores:
    return scores.map(lambda tensor: tensor.detach().requires_grad_())


@pytest.mark.parametrize("name", EVERY)
def test_low_precision_is_promoted_before_anything_is_computed(make_full_batch, name):
    for dtype in (torch.bfloat16, torch.float16):
        scores, pairs = make_full_batch(6, dtype=dtype, **columns_for(name))
        low, wide = (EVERY[name]()(leaves(batch), pairs) for batch in (scores, scores.map(torch.Tensor.float)))
        assert low.loss.dtype == low.gaps.dtype == low.margins.dtype == torch.float32
        assert torch.equal(low.loss, wide.loss)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(EVERY[name]()(leaves(scores), pairs).loss, wide.loss)


@pytest.mark.parametrize("name", EVERY)
def test_loss_and_gradients_are_finite_for_ties_huge_rewards_and_few_pairs(make_full_batch, name):
    for n in (1, 2, 6):
        columns = {column: values[:n] for column, values in columns_for(name).items()}
        scores, pairs = make_full_batch(n, dtype=torch.float32, **columns)
        for scale in (0.0, 1.0, 1e4):
            rewards = {key: scale * scores.tensors[key].sign() for key in scores.tensors if "rewards" in key}
            moved = leaves(Scores({**scores.tensors, **rewards}))
            result = EVERY[name]()(moved, pairs)
            result.loss.backward()
            assert torch.isfinite(result.loss)
            assert all(tensor.grad is None or torch.isfinite(tensor.grad).all() for tensor in moved.tensors.values())


@pytest.mark.parametrize("name", EVERY)
def test_no_pairs_or_no_weight_give_a_zero_that_is_connected_to_the_scores(make_full_batch, name):
    none = {column: [] for column in columns_for(name)}
    for n, columns in ((0, none), (2, {**{key: [1.0, 1.0] for key in none}, "weight": [0.0, 0.0]})):
        scores, pairs = make_full_batch(n, **columns)
        moved = leaves(scores)
        loss = EVERY[name]()(moved, pairs).loss
        loss.backward()
        if n == 0 or name != "sorted":  # sorted rewards belong to no pair, so they ignore the pairs' weights
            assert loss.item() == 0
            used = moved.tensors["member_rewards" if name.startswith("ensemble") else "rewards"]
            assert not used.grad.any()


@settings(max_examples=60)
@given(n=st.integers(1, 6), seed=st.integers(0, 1000), shift=st.floats(1, 100), name=st.sampled_from(sorted(EVERY)))
def test_neither_the_order_of_pairs_nor_a_shift_of_all_rewards_changes_the_loss(make_full_batch, n, seed, shift, name):
    columns = {column: values[:n] for column, values in columns_for(name).items()}
    scores, pairs = make_full_batch(n, seed, **columns)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    plain, mixed = EVERY[name]()(leaves(scores), pairs), EVERY[name]()(leaves(scores), pairs.select(order))
    torch.testing.assert_close(mixed.loss, plain.loss, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(mixed.margins, plain.margins[order])
    shifted = {key: scores.tensors[key] + shift for key in scores.tensors if "rewards" in key}
    if name not in FIX_THE_LEVEL:
        after = EVERY[name]()(leaves(Scores({**scores.tensors, **shifted})), pairs).loss
        torch.testing.assert_close(after, plain.loss, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", EVERY)
def test_an_objective_is_separable_if_it_is_a_weighted_mean_over_any_split(make_full_batch, name):
    scores, pairs = make_full_batch(6, **columns_for(name))
    objective = EVERY[name]()
    splits = [pairs.select(torch.tensor(index)) for index in ([0, 4], [1], [2, 3, 5])]
    total = sum(EVERY[name]()(leaves(scores), split).loss * split.columns["weight"].sum() for split in splits) / 7.5
    same = torch.isclose(total, objective(leaves(scores), pairs).loss, rtol=1e-9)
    assert objective.separable == same == (name not in BATCH_WIDE)


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"sorted", "partial", *BATCH_WIDE} | {"batch-sum", "positive"}))
def test_duplicate_pairs_count_as_their_weight(make_full_batch, name):
    columns = {column: values[:3] for column, values in columns_for(name).items() if column != "weight"}
    scores, pairs = make_full_batch(3, **columns)
    repeated = pairs.select(torch.tensor([0, 0, 0, 1]))
    weighted = Pairs(pairs.chosen, pairs.rejected, {**pairs.columns, "weight": torch.tensor([3.0, 1.0, 0.0])})
    torch.testing.assert_close(EVERY[name]()(scores, weighted).loss, EVERY[name]()(scores, repeated).loss)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Probit(0.0), "^variance must be a finite number above 0, got 0.0"),
        (lambda: Fidelity(NAN), "^variance must be a finite number above 0, got nan"),
        (lambda: Focal(-1.0), "^gamma must be a finite number of at least 0, got -1.0"),
        (lambda: BetaLink(-0.1), "^weight must be a finite number of at least 0"),
        (lambda: BetaLink(prior_alpha=0.0), "^prior_alpha must be a finite number above 0"),
        (lambda: BetaLink(prior_beta=INFINITE), "^prior_beta must be a finite number above 0"),
        (lambda: ConstantMargin(NAN), "^value must be a finite number"),
        (lambda: ColumnMargin(INFINITE), "^scale must be a finite number"),
        (lambda: InstanceMargin(reward_weight=-1.0), "^reward_weight must be"),
        (lambda: InstanceMargin(factor=-1.0), "^factor must be a finite number of at least 0, got -1.0"),
        (lambda: TransportMargin(similarity_weight=-1.0), "^similarity_weight must be"),
        (lambda: TransportMargin(epsilon=-0.1), "^epsilon must be a finite number above 0, got -0.1"),
        (lambda: TransportMargin(iterations=0), "^iterations must be"),
        (lambda: TransportMargin(reading="rows"), "^reading must be one of conditional, mass, diagonal, total"),
        (lambda: TransportMargin(factor=NAN), "^factor must be"),
        (lambda: TransportMargin(similarity_term="x"), "^similarity_term must be one of similarity, dissimilarity"),
        (lambda: TransportMargin(rewards="x"), "^rewards must be one of raw, centered, got 'x'"),
        (lambda: TransportMargin(reading="diagonal", diagonal=False), "^diagonal must be true"),
        (lambda: TransportMargin(support="all"), "^support must be one of batch, queue, got 'all'"),
        (lambda: TransportMargin(queue_size=0), "^queue_size must be a whole number of at least 1, got 0"),
        (lambda: TransportMargin(queue_size=2.5), "^queue_size must be"),
        (lambda: TransportMargin(support="queue", reading="diagonal"), "^reading must be conditional, mass or total"),
        (lambda: TransportMargin(support="queue", diagonal=False), '^diagonal must be true with support "queue"'),
        (lambda: LabelSmoothing(-0.1), r"^alpha must be at least 0 and below 0\.5"),
        (lambda: LabelSmoothing(0.5), r"^alpha must be at least 0 and below 0\.5"),
        (lambda: LabelSmoothing(NAN), r"^alpha must be at least 0 and below 0\.5"),
        (lambda: Quality(0.0), "^gamma must be a finite number above 0, got"),
        (lambda: Quality(INFINITE), "^gamma must be a finite number above 0, got"),
        (lambda: Norm(1.0), "^decay must be at least 0 and below 1, got 1.0"),
        (lambda: Norm(-0.1), "^decay must be"),
        (lambda: PartialTransport(0.0), "^mass must be above 0 and at most 1, got 0.0"),
        (lambda: PartialTransport(1.1), "^mass must be"),
        (lambda: PartialTransport(label_cost=-1.0), "^label_cost must be a finite number of at least 0, got -1.0"),
        (lambda: PartialTransport(label_cost=NAN), "^label_cost must be"),
        (lambda: Centering(-1.0), "^coefficient must be a finite number of at least 0, got -1.0"),
        (lambda: BatchSum(NAN), "^coefficient must be a finite number of at least 0"),
        (lambda: Positive(-0.1), "^coefficient must be a finite number of at least 0"),
        (lambda: Text(alpha=1.5), r"^alpha must be from 0 to 1, got 1\.5"),
        (lambda: Text(beta=0.0), "^beta must be a finite number above 0"),
        (lambda: InformationBottleneck(-1.0), "^beta must be a finite number of at least 0"),
        (lambda: LengthDecorrelation(length_weight=-1.0), "^length_weight must be"),
        (lambda: LengthDecorrelation(overlap_weight=-1.0), "^overlap_weight must be"),
        (lambda: PriorConstraint("size"), "^similarity must be one of length, cosine, fixed, random, got 'size'"),
        (lambda: PriorConstraint(beta1=0.0), "^beta1 must be a finite number above 0"),
        (lambda: PriorConstraint(beta3=INFINITE), "^beta3 must be a finite number, got inf"),
        (lambda: PriorConstraint("fixed", beta1=1.0), r"^beta1 must be null with the similarity fixed, got 1\.0"),
    ],
)
def test_an_option_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


TRANSPORT = "transport margin (w_r 0.9, w_s 0.1, epsilon 0.1, 50 iterations, conditional, factor 1"


@pytest.mark.parametrize(
    ("objective", "description"),
    [
        (Objective(), "logistic, no margin"),
        (Objective(Hinge(), ConstantMargin(0.27), HardTarget()), "hinge, constant margin 0.27, hard targets"),
        (Objective(Focal(), ColumnMargin()), "focal (gamma 2), the data's margin"),
        (Objective(Probit(), ColumnMargin(2.0)), "probit (variance 0.5), the data's margin x 2"),
        (Objective(Probit("model")), "probit (the model's variance), no margin"),
        (Objective(Fidelity("noise")), "fidelity (variance from the column noise), no margin"),
        (Objective(BetaLink()), "beta (weight 1, prior 1, 1), no margin"),
        (Objective(margin=InstanceMargin()), "logistic, instance margin (w_r 0.9, w_s 0.1, factor 1)"),
        (Objective(margin=TransportMargin()), f"logistic, {TRANSPORT})"),
        (Objective(margin=TransportMargin(support="queue")), f"logistic, {TRANSPORT}, queue of 256)"),
        (
            Objective(margin=TransportMargin(0.5, 0.5, 1.0, 9, "mass", 2.0, "dissimilarity", "centered", False)),
            (
                "logistic, transport margin (w_r 0.5, w_s 0.5, epsilon 1, 9 iterations, mass, factor 2, "
                "dissimilarity, centered rewards, no diagonal)"
            ),
        ),
        (Objective(target=LabelSmoothing()), "logistic, no margin, label smoothing 0.1"),
        (Objective(target=Quality()), "logistic, no margin, quality targets (gamma 1.1)"),
        (Objective(coupling=Sorted()), "sorted, logistic, no margin"),
        (Objective(weighting=Norm()), "logistic, no margin, norm weighting (decay 0.9)"),
        (Objective(weighting=MinNorm()), "logistic, no margin, min-norm weighting over sources"),
        (
            Objective(weighting=PartialTransport()),
            "logistic, no margin, partial-transport weighting (mass 0.9, label cost 1)",
        ),
        (
            Objective(regularizers=[Centering(), BatchSum(), Positive()]),
            "logistic, no margin, centering 0.01, batch sum 0.001, positive 0.1",
        ),
        (
            Objective(regularizers=[Text(), InformationBottleneck()]),
            "logistic, no margin, text (alpha 0.01, beta 0.1), information bottleneck 0.1",
        ),
        (
            Objective(regularizers=[LengthDecorrelation()]),
            "logistic, no margin, length decorrelation (length 1, overlap 1)",
        ),
        (
            Objective(regularizers=[PriorConstraint(), PriorConstraint("random")]),
            "logistic, no margin, prior constraint (length, beta1 10, beta3 -5), prior constraint (random)",
        ),
        (EnsembleObjective(margin=ColumnMargin()), "ensemble of heads: logistic, the data's margin"),
    ],
)
def test_description(objective, description):
    assert objective.describe() == description
