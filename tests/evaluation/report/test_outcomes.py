from __future__ import annotations

import numpy as np
import pytest

from aplot_lightning.evaluation.report.outcomes import Outcomes, estimate, outcomes
from aplot_lightning.evaluation.statistics import bootstrap_interval


def some(values: list[float], first: int = 0) -> Outcomes:
    places = range(first, first + len(values))
    return Outcomes([("pair", place) for place in places], np.array(values), np.array(places))


def test_outcomes_leave_undecided_pairs_out_and_tell_pairs_of_a_comparison_apart() -> None:
    found = outcomes(
        {
            "id": np.array(["a", "a", "b", "c", "a"], dtype=object),
            "prompt": np.array([1, 1, 2, 3, 9]),
            "chosen_reward": np.array([1.0, 1.0, 1.0, 1.0, 0.0]),
            "rejected_reward": np.array([0.0, 2.0, 0.0, 1.0, 1.0]),
            "target": np.array([1.0, 1.0, 0.5, 1.0, 0.1]),
        }
    )
    assert found.keys == [("a", 1, 0), ("a", 1, 1), ("c", 3, 0), ("a", 9, 0)]
    assert found.values.tolist() == [1, 0, 0, 1]
    assert found.prompts.tolist() == [1, 1, 3, 9]


def test_differences_are_on_common_pairs_whatever_their_order() -> None:
    first = some([1.0, 0.0, 1.0, 1.0])
    order = [2, 0, 3]
    second = Outcomes([first.keys[i] for i in order], np.array([0.0, 1.0, 1.0]), first.prompts[order])
    difference = first.minus(second)
    assert difference.keys == [("pair", 0), ("pair", 2), ("pair", 3)]
    assert difference.values.tolist() == [0.0, 1.0, 0.0]
    assert difference.prompts.tolist() == [0, 2, 3]


def test_one_set_has_the_interval_of_metrics_json() -> None:
    random = np.random.default_rng(0)
    each = some((random.random(200) < 0.7).astype(float).tolist())
    found = estimate([each])
    assert found is not None
    assert found.interval == bootstrap_interval(each.values, each.prompts)
    assert (found.value, found.pairs) == (each.values.mean(), 200)


def test_a_mean_over_sets_is_unweighted_and_its_variances_add() -> None:
    random = np.random.default_rng(1)
    sets = [some((random.random(n) < p).astype(float).tolist()) for n, p in ((300, 0.7), (900, 0.5), (200, 0.3))]
    found = estimate(sets)
    assert found is not None
    assert found.interval is not None
    assert found.value == pytest.approx(np.mean([each.values.mean() for each in sets]))
    assert found.pairs == 1400
    # independent sets: the variance of the mean of three means
    deviation = np.sqrt(sum(each.values.var() / len(each) for each in sets)) / 3
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.08)


def test_equal_sets_are_drawn_independently() -> None:
    each = some((np.random.default_rng(2).random(400) < 0.6).astype(float).tolist())
    one, two = estimate([each]), estimate([each, each])
    assert one is not None
    assert one.interval is not None
    assert two is not None
    assert two.interval is not None
    assert two.interval[1] - two.interval[0] == pytest.approx((one.interval[1] - one.interval[0]) / np.sqrt(2), rel=0.1)


def test_nothing_to_average_is_none() -> None:
    assert estimate([]) is None
    assert estimate([some([1.0, 0.0]), some([])]) is None
    single = estimate([some([1.0])])
    assert single is not None
    assert single.interval is None
