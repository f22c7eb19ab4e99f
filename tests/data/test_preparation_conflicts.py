"""Conflicts and leaks found by sorting are those that dictionaries find, row after row."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aplot_lightning.data.comparisons import Comparison
from aplot_lightning.data.preparation.conflicts import among, contradicted, repeated
from aplot_lightning.data.preparation.facts import facts_of


def comparison(prompt: str, responses: str, scores: list[int], target: float | None) -> Comparison:
    places = range(len(responses))
    return Comparison(
        prompt=({"role": "user", "content": prompt},),
        responses=tuple(({"role": "assistant", "content": text},) for text in responses),
        pairs=tuple((one, other) for one in places for other in places if scores[one] > scores[other]),
        margin=None,
        target=target,
        scores=None,
        source="s",
        subset="",
        id="",
        where="",
    )


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    responses = draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=4, unique=True))
    scores = draw(st.lists(st.integers(0, 3), min_size=len(responses), max_size=len(responses)))
    target = draw(st.sampled_from([None, None, 0.2, 0.5, 0.8]))
    return comparison(draw(st.sampled_from("pq")), "".join(responses), scores, target)


def stated(c: Comparison) -> list[tuple[str, str, str]]:
    """(prompt, preferred, other) for each pair, in the direction that the target gives it."""
    text = [response[0]["content"] for response in c.responses]
    orders = [(c.prompt[0]["content"], text[winner], text[loser]) for winner, loser in c.pairs]
    if c.target is None or c.target > 0.5:
        return orders
    return [] if c.target == 0.5 else [(prompt, other, preferred) for prompt, preferred, other in orders]


def listed(c: Comparison) -> object:
    text = [response[0]["content"] for response in c.responses]
    return c.prompt[0]["content"], frozenset((text[winner], text[loser]) for winner, loser in c.pairs)


def by_dictionaries(rows: list[Comparison]) -> tuple[list[int], list[int]]:
    """Whom each row contradicts and whom it repeats, -1 for nobody, as a reader of the rows would find it."""
    first: dict[object, int] = {}
    for place, row in enumerate(rows):
        for order in stated(row):
            first.setdefault(order, place)
    against, again = [], []
    earlier: dict[object, int] = {}
    for place, row in enumerate(rows):
        opposites = [(prompt, other, preferred) for prompt, preferred, other in stated(row)]
        against.append(next((first[opposite] for opposite in opposites if opposite in first), -1))
        again.append(-1 if against[-1] >= 0 else earlier.get(listed(row), -1))
        if against[-1] < 0 and again[-1] < 0:
            earlier[listed(row)] = place
    return against, again


@settings(max_examples=200, deadline=None)
@given(st.lists(comparisons().filter(lambda c: c.pairs), max_size=14))
def test_conflicts_are_those_of_a_reader(rows: list[Comparison]) -> None:
    facts = facts_of(rows)
    against = contradicted(facts["order_counts"], facts["preferred"], facts["opposite"])
    again = repeated(facts["listed"], against < 0)
    assert (against.tolist(), again.tolist()) == by_dictionaries(rows)


keys = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2**64 - 1])), max_size=12)


@settings(deadline=None)
@given(mine=keys, theirs=keys)
def test_leaks_are_those_of_a_set(mine: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> None:
    found = among(*(np.asarray(each, dtype=np.uint64).reshape(-1, 2) for each in (mine, theirs)))
    assert found.tolist() == [key in theirs for key in mine]
