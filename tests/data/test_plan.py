from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.data.plan import BatchPlan


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=60), size=st.integers(1, 16), seed=st.integers(0, 99))
def test_an_epoch_holds_every_comparison_once_in_batches_of_the_asked_size(
    counts: list[int], size: int, seed: int
) -> None:
    plan = BatchPlan(np.asarray(counts), size, seed)
    for epoch in (0, 3):
        batches = [plan.batch(epoch, offset) for offset in range(plan.batches_per_epoch)]
        assert sorted(np.concatenate(batches)) == list(range(len(counts)))
        pairs = [sum(counts[c] for c in batch) for batch in batches]
        assert all(abs(number - size) <= 2 * max(counts) for number in pairs[:-1])
        assert min(pairs) > 0
        if max(counts) == 1:
            assert all(number == size for number in pairs[:-1])


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), batch=st.integers(2, 12), seed=st.integers(0, 99))
def test_every_source_is_in_every_batch_if_asked(sizes: list[int], batch: int, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.ones(len(groups), dtype=np.int64)
    batches = -(-len(groups) // batch)
    if min(sizes) < batches:
        with pytest.raises(ValueError, match="has fewer comparisons than there are optimizer batches"):
            BatchPlan(counts, batch, seed, groups)
        return
    plan = BatchPlan(counts, batch, seed, groups)
    drawn = [plan.batch(1, offset) for offset in range(plan.batches_per_epoch)]
    assert sorted(np.concatenate(drawn)) == list(range(len(groups)))
    assert all(set(groups[part]) == set(range(len(sizes))) for part in drawn)
    assert all(abs(len(part) - len(groups) / batches) <= len(sizes) for part in drawn)


def test_the_plan_is_a_pure_function_of_seed_and_place() -> None:
    counts = np.ones(100, dtype=np.int64)
    forward = BatchPlan(counts, 8, seed=5)
    wanted = [forward.batch(epoch, offset).tolist() for epoch in range(3) for offset in range(13)]
    backward = BatchPlan(counts, 8, seed=5)
    got = [backward.batch(epoch, offset).tolist() for epoch in (2, 1, 0) for offset in range(12, -1, -1)]
    assert got == wanted[::-1]
    assert BatchPlan(counts, 8, seed=6).batch(0, 0).tolist() != wanted[0]
    assert forward.batch(1, 0).tolist() != wanted[0]


# Sources with weights


weighing = st.sampled_from([0.01, 0.25, 0.5, 1.0, 1.5, 2.0, 3.25])


@given(
    counts=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=30), min_size=1, max_size=4),
    weights=st.lists(weighing, min_size=4, max_size=4),
    size=st.integers(1, 16),
    seed=st.integers(0, 99),
)
def test_an_epoch_draws_each_comparison_as_often_as_its_weight_says(
    counts: list[list[int]], weights: list[float], size: int, seed: int
) -> None:
    of = np.repeat(np.arange(len(counts)), [len(part) for part in counts])
    pairs = np.asarray([count for part in counts for count in part])
    weight = np.asarray(weights)[of]
    plan = BatchPlan(pairs, size, seed, weights=weight)
    for epoch in (0, 3):
        batches = [plan.batch(epoch, offset) for offset in range(plan.batches_per_epoch)]
        drawn = np.bincount(np.concatenate(batches), minlength=len(pairs))
        assert np.all((drawn == np.floor(weight)) | (drawn == np.floor(weight) + 1))
        for value in set(weight):
            members = weight == value
            assert abs(drawn[members].sum() - max(1.0, value * members.sum())) <= 0.5
        in_batches = [int(pairs[batch].sum()) for batch in batches]
        total = sum(in_batches)
        assert min(in_batches) > 0
        if pairs.max() == 1:
            assert in_batches[:-1] == [size] * (len(batches) - 1)
            assert 0 < in_batches[-1] <= size
        else:
            assert all(abs(number - total / len(batches)) <= max(size, 8) for number in in_batches[:-1])
        assert len(plan.batch(epoch, plan.batches_per_epoch)) == 0


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    weights=st.lists(weighing, min_size=4, max_size=4),
    batch=st.integers(2, 12),
    seed=st.integers(0, 99),
)
def test_weighed_sources_are_in_every_batch_if_asked(
    sizes: list[int], weights: list[float], batch: int, seed: int
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    ones = np.ones(len(groups), dtype=np.int64)
    try:
        plan = BatchPlan(ones, batch, seed, groups, np.asarray(weights)[groups])
    except ValueError:
        drawn = [max(1, round(size * weight)) for size, weight in zip(sizes, weights, strict=False)]
        assert min(drawn) <= sum(drawn) / batch + 2
        return
    for epoch in (0, 2):
        batches = [plan.batch(epoch, offset) for offset in range(plan.batches_per_epoch)]
        assert all(set(groups[part]) == set(range(len(sizes))) for part in batches)
        for group, weight in zip(range(len(sizes)), weights, strict=False):
            drawn_of = sum(int((groups[part] == group).sum()) for part in batches)
            assert abs(drawn_of - max(1.0, sizes[group] * weight)) <= 0.5


def test_half_a_source_is_another_half_in_another_epoch_and_none_is_left_out() -> None:
    weights = np.repeat([1.0, 0.5], [40, 100])
    plan = BatchPlan(np.ones(140, dtype=np.int64), 9, seed=4, weights=weights)
    assert plan.batches_per_epoch == 10
    halves = []
    for epoch in range(8):
        drawn = np.concatenate([plan.batch(epoch, offset) for offset in range(10)])
        assert sorted(drawn[drawn < 40]) == list(range(40))
        halves.append(frozenset(drawn[drawn >= 40].tolist()))
        assert len(halves[-1]) == 50
    assert len(set(halves)) == 8
    assert len(frozenset().union(*halves)) > 97  # all but 1 in 256 in expectation


def test_copies_of_a_comparison_are_far_apart() -> None:
    weights = np.repeat([1.0, 4.0], [1000, 500])
    plan = BatchPlan(np.ones(1500, dtype=np.int64), 30, seed=2, weights=weights)
    batches = [plan.batch(0, offset) for offset in range(plan.batches_per_epoch)]
    assert all(len(set(batch)) == len(batch) for batch in batches)
    shares = [float((batch >= 1000).mean()) for batch in batches]
    assert abs(np.mean(shares) - 2 / 3) < 1e-9
    assert np.std(shares) < 2 * np.sqrt(2 / 9 / 30)  # as a draw from one urn would spread


def test_weights_keep_the_plan_a_pure_function_and_weights_of_one_change_nothing() -> None:
    counts = np.random.default_rng(0).integers(1, 4, 200)
    weights = np.repeat([0.5, 1.75], 100)
    one, other = (BatchPlan(counts, 16, 5, weights=weights) for _ in range(2))
    last = one.batches_per_epoch - 1
    wanted = [one.batch(epoch, offset).tolist() for epoch in range(3) for offset in range(last + 1)]
    got = [other.batch(epoch, offset).tolist() for epoch in (2, 1, 0) for offset in range(last, -1, -1)]
    assert got == wanted[::-1]
    plain, weighed = BatchPlan(counts, 16, 5), BatchPlan(counts, 16, 5, weights=np.ones(200))
    assert plain.batches_per_epoch == weighed.batches_per_epoch
    assert all(np.array_equal(plain.batch(1, offset), weighed.batch(1, offset)) for offset in range(20))


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_no_frequency_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="not above 0 and finite"):
        BatchPlan(np.ones(3, dtype=np.int64), 2, 0, weights=np.asarray([1.0, weight, 1.0]))
