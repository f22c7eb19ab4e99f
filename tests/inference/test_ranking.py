from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.inference.ranking import best_first, ranked
from aplot_lightning.inference.rows import Row


@given(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12), st.none() | st.integers(1, 12))
def test_the_order_is_a_stable_sort_and_every_tie_in_it_is_told(rewards, top):
    order, ties = best_first(rewards, top)
    whole = sorted(range(len(rewards)), key=lambda place: rewards[place], reverse=True)  # stable, so earlier first
    assert order == whole[:top]
    expected = {place for place in order if rewards.count(rewards[place]) > 1}
    assert expected <= {place for group in ties for place in group}
    for group in ties:
        assert len(group) > 1
        assert group == [place for place, reward in enumerate(rewards) if reward == rewards[group[0]]]
        assert set(group) & set(order)


@pytest.mark.parametrize(
    ("top", "added"),
    [
        (None, {"order": [1, 3, 0, 2], "ties": [[1, 3], [0, 2]]}),
        (1, {"order": [1], "ties": [[1, 3]]}),  # chance decided who is first
        (2, {"order": [1, 3], "ties": [[1, 3]]}),
        (3, {"order": [1, 3, 0], "ties": [[1, 3], [0, 2]]}),
    ],
)
def test_ties_stand_in_the_row(top, added):
    row = Row("in:1", {"id": 7}, "responses", rewards=[0.5, 2.0, 0.5, 2.0])
    assert ranked(row, top) == {"id": 7, "rewards": row.rewards, **added}


def test_without_ties_there_is_no_word_of_them():
    assert ranked(Row("in:1", {}, "responses", rewards=[0.5, 2.0])) == {"rewards": [0.5, 2.0], "order": [1, 0]}
