"""Means over crossed prompts and seeds, against SciPy's tests where they coincide, and against simulated truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from aplot_lightning.evaluation.statistics import (
    bootstrap_interval,
    paired_difference,
    percentiles,
    seeded_mean,
    sign_flip_p,
)


def answers(
    random: np.random.Generator, seeds: int, prompts: int, seed_sd: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right or wrong of two equally good groups, and clusters: a prompt's pairs and a run have chances of their own."""
    member = np.repeat(np.arange(prompts), random.integers(1, 4, prompts))
    chance = (0.7 + random.uniform(-0.2, 0.2, prompts))[member]
    first, second = (
        (random.random((seeds, len(member))) < chance + random.normal(0, seed_sd, (seeds, 1))).astype(float)
        for _ in range(2)
    )
    return first, second, member


def test_one_seed_is_the_plain_paired_difference() -> None:
    a, b, member = answers(np.random.default_rng(1), 1, 80)
    found = seeded_mean([(a - b, member)])
    expected = paired_difference(a[0], b[0], member)
    assert (found.value, found.interval) == (pytest.approx(expected.difference), expected.interval)
    assert found.p_value == found.p_prompts == expected.p_value
    assert seeded_mean([(a, member)]).interval == bootstrap_interval(a[0], member)


def test_seeds_alone_are_the_t_test_over_seeds() -> None:
    of_seeds = np.array([0.02, 0.05, 0.01, 0.07])
    found = seeded_mean([(np.repeat(of_seeds[:, None], 30, axis=1), np.arange(30))], resamples=40_000)
    expected = stats.ttest_1samp(of_seeds, 0)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx((interval.low, interval.high), abs=0.001)
    assert found.by_seed == pytest.approx(of_seeds)


def test_prompts_alone_are_the_t_test_over_prompts() -> None:
    values = np.random.default_rng(2).normal(0.2, 1, 40)
    found = seeded_mean([(np.tile(values, (3, 1)), np.arange(40))])
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def quasi_f(table: np.ndarray) -> float:
    """Clark's quasi-F of the mean by its textbook formula: p of F' = MS(mean)'s part over MS(P) + MS(S) - MS(SxP)."""
    seeds, prompts = table.shape
    mean = table.mean()
    ms_prompts = sum(seeds * (table[:, k].mean() - mean) ** 2 for k in range(prompts)) / (prompts - 1)
    ms_seeds = sum(prompts * (table[k].mean() - mean) ** 2 for k in range(seeds)) / (seeds - 1)
    rest = [
        (table[i, j] - table[i].mean() - table[:, j].mean() + mean) ** 2 for i in range(seeds) for j in range(prompts)
    ]
    ms_rest = sum(rest) / (seeds - 1) / (prompts - 1)
    error = ms_prompts + ms_seeds - ms_rest
    degrees = error**2 / (
        ms_prompts**2 / (prompts - 1) + ms_seeds**2 / (seeds - 1) + ms_rest**2 / (seeds - 1) / (prompts - 1)
    )
    return float(stats.f.sf(seeds * prompts * mean**2 / error, 1, degrees))


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_p_value_is_that_of_quasi_f(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    table = 0.3 + random.normal(size=(seeds, 25)) + random.normal(size=(seeds, 1)) + random.normal(size=(1, 25))
    assert seeded_mean([(table, np.arange(25))]).p_value == pytest.approx(quasi_f(table), rel=1e-9)


def test_seeds_are_shared_by_the_sets_of_a_mean() -> None:
    """Two sets whose seeds pull together: their mean varies as much over seeds as each alone, not less."""
    of_seeds = np.array([[0.02], [0.05], [0.09]])
    one, other = (np.broadcast_to(of_seeds, (3, 40)), np.arange(40)), (np.broadcast_to(of_seeds, (3, 7)), np.arange(7))
    both = seeded_mean([one, other])
    assert both.p_value == pytest.approx(stats.ttest_1samp(of_seeds[:, 0], 0).pvalue)
    assert both.pairs == 47


def test_sets_count_alike_however_many_pairs_they_have() -> None:
    random = np.random.default_rng(3)
    small, large = random.normal(0.5, 1, (1, 6)), random.normal(0, 1, (1, 8))
    found = seeded_mean([(small, np.arange(6)), (large, np.arange(8))], resamples=40_000)
    assert found.value == pytest.approx((small.mean() + large.mean()) / 2)
    weighted = np.concatenate([small[0] / 6, large[0] / 8])
    flips = np.array(list(itertools.product([-1, 1], repeat=14)))
    exact = np.mean(np.abs(flips @ weighted) >= abs(weighted.sum()) - 1e-12)
    assert found.p_prompts == pytest.approx(exact, abs=0.01)


def test_permutations_flip_whole_prompts_averaged_over_seeds() -> None:
    random = np.random.default_rng(4)
    differences = random.integers(-1, 2, (3, 22)).astype(float)
    member = np.repeat(np.arange(11), 2)
    of_prompts = differences.mean(axis=0).reshape(11, 2).sum(axis=1)
    expected = stats.permutation_test(
        (of_prompts, np.zeros(11)), lambda x, y: np.sum(x - y), permutation_type="samples", n_resamples=np.inf
    )
    found = seeded_mean([(differences, member)], resamples=40_000)
    assert found.p_prompts == pytest.approx(expected.pvalue, abs=0.01)


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "false_positives"),
    [(2, 0.03, (0.03, 0.15)), (3, 0.0, (0.0, 0.06)), (3, 0.03, (0.02, 0.09)), (5, 0.03, (0.02, 0.09))],
)
def test_false_positives_and_coverage_where_nothing_differs(
    seeds: int, seed_sd: float, false_positives: tuple[float, float]
) -> None:
    """In 400 comparisons of two equally good objectives; 3 binomial standard errors around 5 % are 0.017 to 0.083."""
    random = np.random.default_rng([5, seeds, int(100 * seed_sd)])
    wrong = over_prompts = covered = 0
    for repeat in range(400):
        a, b, member = answers(random, seeds, 200, seed_sd)
        found = seeded_mean([(a - b, member)], resamples=250, seed=repeat)
        assert found.p_value is not None
        assert found.interval is not None
        wrong += found.p_value < 0.05
        over_prompts += found.p_prompts < 0.05
        covered += found.interval[0] <= 0 <= found.interval[1]
    low, high = false_positives
    assert low <= wrong / 400 <= high
    assert 1 - high - 0.02 <= covered / 400 <= 1 - low + 0.005
    if seed_sd:  # these very models do differ, and a test over prompts alone says so far too often
        assert over_prompts / 400 > 0.15
    else:
        assert over_prompts / 400 < 0.085


def test_resampling_three_seeds_would_not_do() -> None:
    """Where seeds matter most, a bootstrap that draws both covers far less than 95 %, and this one does not."""
    random = np.random.default_rng(6)
    ours = plain = 0
    for repeat in range(300):
        values = random.normal(0, 0.05, (3, 1)) + random.normal(0, 0.1, (3, 100))
        seeds, prompts = (random.multinomial(n, np.full(n, 1 / n), size=250) for n in values.shape)
        low, high = percentiles(np.einsum("ds,sp,dp->d", seeds, values, prompts) / values.size)
        plain += low <= 0 <= high
        interval = seeded_mean([(values, np.arange(100))], resamples=500, seed=repeat).interval
        assert interval is not None
        ours += interval[0] <= 0 <= interval[1]
    assert plain / 300 < 0.85
    assert ours / 300 > 0.91


def test_a_real_difference_is_found() -> None:
    a, b, member = answers(np.random.default_rng(70), 5, 400, 0.005)
    better = np.maximum(a, np.random.default_rng(8).random(a.shape) < 0.3)
    found = seeded_mean([(better - b, member)])
    assert found.interval is not None
    assert 0 < found.interval[0] < found.value < found.interval[1]
    assert found.p_value is not None
    assert found.p_value < 0.01
    assert seeded_mean([(b - better, member)]).p_value == pytest.approx(found.p_value)


def test_order_of_seeds_and_pairs_and_names_of_prompts_do_not_matter() -> None:
    a, b, member = answers(np.random.default_rng(9), 3, 50, 0.02)
    random = np.random.default_rng(10)
    order, names = random.permutation(len(member)), random.integers(-(2**62), 2**62, 50)
    known, found = (
        seeded_mean([(values, groups)])
        for values, groups in ((a - b, member), ((a - b)[::-1][:, order], names[member][order]))
    )
    assert found.value == pytest.approx(known.value)
    assert found.p_value == pytest.approx(known.p_value)
    assert found.p_prompts == known.p_prompts
    assert found.interval == pytest.approx(known.interval)


def test_nothing_varies() -> None:
    member = np.arange(10)
    same = seeded_mean([(np.zeros((3, 10)), member)])
    assert (same.value, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)
    always = seeded_mean([(np.ones((3, 10)), member)])
    assert (always.value, always.interval) == (1.0, (1.0, 1.0))
    assert always.p_value == always.p_prompts == pytest.approx(2 / 2**10, abs=0.003)


def test_small_p_values_of_permutations_are_told_apart() -> None:
    """A correction for fifty tests still leaves something below 0.05."""
    found = seeded_mean([(np.ones((1, 60)), np.arange(60))])
    assert found.p_value == found.p_prompts == 1 / 20_001


def test_one_prompt_says_nothing() -> None:
    found = seeded_mean([(np.ones((3, 4)), np.full(4, 7))])
    assert (found.value, found.interval, found.p_prompts, found.p_value) == (1.0, None, None, None)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"\(seeds, n\) and clusters \(n,\), not \(2, 3\) and \(2,\)"):
        seeded_mean([(np.ones((2, 3)), np.arange(2))])
    with pytest.raises(ValueError, match="no pairs to average"):
        seeded_mean([(np.ones((2, 0)), np.arange(0))])
    with pytest.raises(ValueError, match="the same seeds"):
        seeded_mean([(np.ones((2, 3)), np.arange(3)), (np.ones((3, 3)), np.arange(3))])
    with pytest.raises(ValueError, match="the same seeds"):
        seeded_mean([])
    with pytest.raises(ValueError, match="no pairs to compare"):
        sign_flip_p([([], [])])
