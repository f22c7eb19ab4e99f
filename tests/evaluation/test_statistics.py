from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aplot_lightning.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_means,
    counted,
    paired_difference,
    percentiles,
    prompts,
    rank_correlation,
    right,
)


def clustered(random: np.random.Generator, clusters: int, spread: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong pairs whose chance of being right is their prompt's own; prompts hold 1 to 8 pairs."""
    sizes = random.integers(1, 9, clusters)
    chances = np.clip(0.7 + random.uniform(-spread, spread, clusters), 0, 1)
    member = np.repeat(np.arange(clusters), sizes)
    return (random.random(len(member)) < chances[member]).astype(float), member


def test_right_and_counted() -> None:
    gap = np.array([1.0, -1.0, 0.0, 1.0, -1.0, 1.0, -1.0, np.nan])
    target = np.array([1.0, 1.0, 1.0, 0.2, 0.2, 0.5, 0.5, 1.0])
    assert right(gap, target).tolist() == [True, False, False, False, True, False, False, False]
    assert counted(target).tolist() == [True, True, True, True, True, False, False, True]


def test_interval_agrees_with_scipy_without_clusters() -> None:
    random = np.random.default_rng(1)
    correct = (random.random(400) < 0.7).astype(float)
    expected = stats.bootstrap((correct,), np.mean, method="percentile", n_resamples=20000, rng=random)
    low, high = bootstrap_interval(correct, np.arange(400), resamples=20000)
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.004)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.004)


@pytest.mark.parametrize("kind", ["right or wrong", "any value"])
def test_draws_agree_with_a_slow_loop_over_clusters(kind: str) -> None:
    random = np.random.default_rng(2)
    values, member = clustered(random, 30)
    if kind == "any value":
        values = random.normal(size=len(member)) + member / 10
    loop = []
    for _ in range(6000):
        drawn = random.integers(0, 30, 30)
        loop.append(np.concatenate([values[member == cluster] for cluster in drawn]).mean())
    means = bootstrap_means(values, member, resamples=6000)
    assert stats.ks_2samp(means, loop).pvalue > 0.01
    assert means.std() == pytest.approx(np.std(loop), rel=0.05)


def test_interval_is_the_normal_one_for_many_prompts() -> None:
    random = np.random.default_rng(3)
    correct = random.random(100_000) < 0.73
    half = 1.96 * np.sqrt(0.73 * 0.27 / 100_000)
    low, high = bootstrap_interval(correct, random.permutation(100_000))
    assert low == pytest.approx(correct.mean() - half, abs=2e-4)
    assert high == pytest.approx(correct.mean() + half, abs=2e-4)


def test_coverage_is_nominal_over_prompts_and_too_low_over_pairs() -> None:
    random = np.random.default_rng(4)
    covered = {"prompts": 0, "pairs": 0}
    for repeat in range(400):
        correct, member = clustered(random, 60, spread=0.3)
        for unit, groups in {"prompts": member, "pairs": np.arange(len(member))}.items():
            low, high = bootstrap_interval(correct, groups, resamples=500, seed=repeat)
            covered[unit] += low <= 0.7 <= high
    assert 0.91 <= covered["prompts"] / 400 <= 0.985
    assert covered["pairs"] < covered["prompts"] - 8


def test_names_and_order_of_clusters_do_not_matter() -> None:
    correct, member = clustered(np.random.default_rng(5), 50)
    hashes = np.random.default_rng(6).integers(-(2**63), 2**63 - 1, 50)
    order = np.random.default_rng(7).permutation(len(member))
    assert bootstrap_interval(correct, member) == bootstrap_interval(correct[order], hashes[member][order])


def test_seed_decides() -> None:
    correct, member = clustered(np.random.default_rng(8), 50)
    assert bootstrap_interval(correct, member, seed=1) == bootstrap_interval(correct, member, seed=1)
    assert bootstrap_interval(correct, member, seed=1) != bootstrap_interval(correct, member, seed=2)
    assert bootstrap_interval(correct, member, seed=[1, 2]) != bootstrap_interval(correct, member, seed=[1, 3])


def test_wider_confidence_is_a_wider_interval() -> None:
    correct, member = clustered(np.random.default_rng(9), 50)
    low, high = bootstrap_interval(correct, member, confidence=0.5)
    wide_low, wide_high = bootstrap_interval(correct, member, confidence=0.99)
    assert wide_low < low < correct.mean() < high < wide_high


def test_draws_are_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    correct, member = clustered(np.random.default_rng(10), 200)
    whole = bootstrap_means(correct, member)
    monkeypatch.setattr(prompts, "CELLS_AT_ONCE", 100)
    np.testing.assert_array_equal(bootstrap_means(correct, member), whole)


def test_no_interval_without_two_prompts() -> None:
    assert bootstrap_interval([], []) is None
    assert bootstrap_interval([1.0, 0.0, 1.0], [4, 4, 4]) is None
    assert bootstrap_interval([1.0, 1.0], [4, 5]) == (1.0, 1.0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"equally long, not \(2,\) and \(3,\)"):
        bootstrap_interval([1.0, 0.0], [1, 2, 3])
    with pytest.raises(ValueError, match="no pairs"):
        bootstrap_means([], [])
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([], [], [])


def test_percentiles_are_central() -> None:
    assert percentiles(np.linspace(0, 1, 1001), 0.9) == pytest.approx((0.05, 0.95))


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.4])
def test_p_value_agrees_with_all_sign_flips(shift: float) -> None:
    random = np.random.default_rng(11)
    member = np.repeat(np.arange(10), random.integers(1, 5, 10))
    a = (random.random(len(member)) < 0.5 + shift).astype(float)
    b = (random.random(len(member)) < 0.5 - shift).astype(float)
    sums = np.array([(a - b)[member == cluster].sum() for cluster in range(10)])
    flips = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = np.mean(np.abs(flips @ sums) >= abs(sums.sum()) - 1e-9)
    found = paired_difference(a, b, member, resamples=40_000)
    assert found.p_value == pytest.approx(exact, abs=0.01)
    assert found.difference == pytest.approx(a.mean() - b.mean())


def test_p_value_agrees_with_scipy_on_any_values() -> None:
    random = np.random.default_rng(12)
    a, b = random.normal(0.4, 1, 12), random.normal(0, 1, 12)
    expected = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert paired_difference(a, b, np.arange(12), resamples=40_000).p_value == pytest.approx(expected.pvalue, abs=0.01)


def test_paired_interval_is_that_of_the_differences_and_narrower_than_unpaired() -> None:
    random = np.random.default_rng(13)
    b, member = clustered(random, 200)
    a = np.where(random.random(len(b)) < 0.1, 1.0, b)  # a is b with a few errors mended
    found = paired_difference(a, b, member)
    assert found.interval == bootstrap_interval(a - b, member)
    assert found.interval is not None
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    low, high = bootstrap_interval(b, member)
    assert found.interval[1] - found.interval[0] < 0.7 * (high - low)
    assert found.p_value < 0.01


def test_two_equal_models_do_not_differ() -> None:
    b, member = clustered(np.random.default_rng(14), 20)
    found = paired_difference(b, b, member)
    assert (found.difference, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_p_value_is_uniform_where_nothing_differs() -> None:
    random = np.random.default_rng(15)
    values = []
    for repeat in range(300):
        member = np.repeat(np.arange(40), random.integers(1, 9, 40))
        chances = random.uniform(0.4, 1, (2, 40))  # each model has its own on every prompt, from one law
        a, b = (random.random((2, len(member))) < chances[:, member]).astype(float)
        values.append(paired_difference(a, b, member, resamples=400, seed=repeat).p_value)
    assert np.mean(np.array(values) < 0.05) < 0.1
    assert np.mean(np.array(values) < 0.5) == pytest.approx(0.5, abs=0.1)


small = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30)


@given(small)
def test_rank_correlation_agrees_with_scipy(points: list[tuple[int, int]]) -> None:
    a, b = np.array(points, dtype=float).T
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert rank_correlation(a, b) is None
    else:
        assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


def test_rank_correlation_needs_two_values() -> None:
    assert rank_correlation([], []) is None
    assert rank_correlation([1.0], [2.0]) is None
