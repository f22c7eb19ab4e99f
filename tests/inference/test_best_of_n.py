from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.inference.best_of_n import best_of_n_kl, best_of_n_means


def by_hand(proxy, values, n: int) -> float:
    """Over all subsets of n the value of the best, lots drawn among the best where several are."""
    found = []
    for subset in combinations(range(len(proxy)), n):
        most = max(proxy[place] for place in subset)
        found.append(np.mean([values[place] for place in subset if proxy[place] == most]))
    return float(np.mean(found))


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=1, max_size=8))
def test_it_is_the_mean_over_all_subsets(samples):
    proxy, values = zip(*samples, strict=True)
    sizes = range(1, len(samples) + 1)
    expected = [by_hand(proxy, values, n) for n in sizes]
    np.testing.assert_allclose(best_of_n_means(proxy, values, sizes), expected, atol=1e-9)


def test_several_columns_at_once():
    random = np.random.default_rng(0)
    proxy, values = random.normal(size=50), random.normal(size=(50, 3))
    both = best_of_n_means(proxy, values, [1, 7, 50])
    for column in range(3):
        np.testing.assert_allclose(both[:, column], best_of_n_means(proxy, values[:, column], [1, 7, 50]))
    np.testing.assert_allclose(both[0], values.mean(0))
    np.testing.assert_allclose(both[2], values[proxy.argmax()])


def test_a_large_pool_meets_the_expected_maximum_of_normals():
    from scipy.integrate import quad
    from scipy.stats import norm

    draws = np.random.default_rng(1).normal(size=200_000)
    for n, found in zip((4, 64, 1024), best_of_n_means(draws, draws, [4, 64, 1024]), strict=True):
        expected = quad(lambda x, n=n: x * n * norm.pdf(x) * norm.cdf(x) ** (n - 1), -9, 9, points=[0, 2, 4])[0]
        assert found == pytest.approx(expected, abs=0.03)


def test_kl():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(10_000) == pytest.approx(log(10_000) - 0.9999)
    # n = 4 of a uniform policy over many different rewards: the best has density n u^(n - 1)
    places = (np.arange(100_000) + 0.5) / 100_000
    density = 4 * places**3
    assert best_of_n_kl(4) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-4)


@pytest.mark.parametrize(("proxy", "values", "sizes"), [([1.0], [1.0], [2]), ([1.0], [1.0], [0]), ([1.0], [1, 2], [1])])
def test_what_cannot_be_asked(proxy, values, sizes):
    with pytest.raises(ValueError, match="must be"):
        best_of_n_means(proxy, values, sizes)
