from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.inference import preference_pairs
from aplot_lightning.inference.preference_pairs import Candidates, choose_pair, preference_row

NUMBERS = st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 1))


def gain(rule, gap: float, surprise: float, phi: float) -> float:
    return {"max_min": gap, "plus": phi * gap + surprise, "times": gap * surprise}[rule]


@given(
    st.sampled_from(["max_min", "plus", "times"]),
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=7),
    st.floats(0, 2),
    st.floats(2, 4),
    st.sampled_from([1.0, 50.0]),
)
def test_the_pair_is_the_best_of_all(rule, candidates, least, most, phi):
    rewards, logs = [reward for reward, _ in candidates], [log for _, log in candidates]
    gains = {}
    for i, (r_i, l_i) in enumerate(candidates):
        for j, (r_j, l_j) in enumerate(candidates):
            value = gain(rule, r_i - r_j, l_j - l_i, phi)
            if r_i > r_j and least <= r_i - r_j <= most and value > 0:
                gains[i, j] = value
    pair = choose_pair(rule, rewards, logs, phi=phi, least_margin=least, most_margin=most)
    if not gains:
        assert pair is None
    else:
        assert gains[pair] == pytest.approx(max(gains.values()))


def test_each_rule_on_one_prompt():
    rewards, logs = [0.0, 1.0, 1.05, 0.9], [-10.0, -40.0, -4.0, -30.0]
    assert choose_pair("max_min", rewards) == (2, 0)
    # 50 x 1.05 - 6 = 46.5 for (2, 0); 50 x 1.0 + 30 = 80 for (1, 0)
    assert choose_pair("plus", rewards, logs) == (1, 0)
    assert choose_pair("times", rewards, logs) == (1, 0)
    assert choose_pair("plus", rewards, logs, phi=1e6) == (2, 0)
    # where the policy already prefers the better one everywhere, times has nothing to teach
    assert choose_pair("times", [0.0, 1.0], [-5.0, -1.0]) is None
    assert choose_pair("max_min", rewards, most_margin=1.0) == (1, 0)
    assert choose_pair("max_min", rewards, least_margin=1.1) is None
    assert choose_pair("max_min", [1.0, 1.0]) is None
    assert choose_pair("max_min", [1.0, 0.0, 1.0, 0.0]) == (0, 1)


def test_many_candidates_are_looked_at_in_blocks(monkeypatch):
    random = np.random.default_rng(0)
    rewards, logs = random.normal(size=60), random.normal(size=60)
    for rule in ("max_min", "plus", "times"):
        whole = choose_pair(rule, rewards, logs, phi=1.0)
        monkeypatch.setattr(preference_pairs, "CELLS_AT_ONCE", 130)
        assert choose_pair(rule, rewards, logs, phi=1.0) == whole
        monkeypatch.undo()


MESSAGES = [{"role": "user", "content": "hi"}]


def test_layouts():
    row = {"prompt": "hi", "responses": ["a", "b"], "rewards": [1, 2], "id": "7", "extra": 1, "source": "s"}
    assert preference_row(Candidates.of(row, "max_min"), (1, 0)) == {
        "prompt": "hi",
        "chosen": "b",
        "rejected": "a",
        "chosen_score": 2.0,
        "rejected_score": 1.0,
        "id": "7",
        "source": "s",
    }
    a, b = ([{"role": "assistant", "content": text}] for text in "ab")
    for prompt, responses in ((MESSAGES, ["a", "b"]), ("hi", [a, "b"]), (MESSAGES, [a, b])):
        made = preference_row(Candidates.of({**row, "prompt": prompt, "responses": responses}, "max_min"), (1, 0))
        assert (made["prompt"], made["chosen"], made["rejected"]) == (MESSAGES, b, a)


def test_repeated_texts_are_left_out():
    wrapped = [{"role": "assistant", "content": "a"}]
    row = {"prompt": "p", "responses": ["a", "b", "a", wrapped, "c", " "], "rewards": [1, 2, 3, 4, 5, 6]}
    kept = Candidates.of({**row, "log_probabilities": [-1, -2, -3, -4, -5, -6]}, "plus").distinct()
    assert (kept.responses, kept.rewards, kept.log_probabilities) == (["a", "b", "c"], [1, 2, 5], [-1, -2, -5])


GOOD = {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 2]}


@pytest.mark.parametrize(
    ("change", "rule", "message"),
    [
        ({"prompt": None}, "max_min", 'no "prompt"'),
        ({"prompt": ""}, "max_min", 'no "prompt"'),
        ({"prompt": 3}, "max_min", "prompt is neither text nor messages"),
        ({"responses": []}, "max_min", 'no "responses"'),
        ({"responses": "ab"}, "max_min", 'no "responses"'),
        ({"responses": ["a", 3]}, "max_min", r"responses\[1\] is neither"),
        ({"rewards": None}, "max_min", 'no "rewards"'),
        ({"rewards": [1]}, "max_min", '"rewards" holds 1 numbers for 2 responses'),
        ({"rewards": [1, float("nan")]}, "max_min", r"rewards\[1\] is nan"),
        ({"rewards": [1, True]}, "max_min", r"rewards\[1\] is True"),
        ({"rewards": 3}, "max_min", '"rewards" is no list'),
        ({}, "plus", "which the rule plus needs"),
        ({"log_probabilities": [-1, -2, -3]}, "times", '"log_probabilities" holds 3 numbers'),
    ],
)
def test_rows_that_cannot_be_used(change, rule, message):
    with pytest.raises(RowError, match=message):
        Candidates.of({**GOOD, **change}, rule)
    with pytest.raises(RowError, match="not a JSON object"):
        Candidates.of([GOOD], rule)
