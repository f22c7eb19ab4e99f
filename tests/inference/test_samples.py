from __future__ import annotations

import re

import pytest

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.inference.samples import ballot_of

BOXED = re.compile(r"answer is (-?\d+)")


def test_answers_as_they_are():
    ballot = ballot_of({"answers": [4, "4", None, 5.5], "rewards": [1, 2, 3, 4], "correct": 4})
    assert ballot.answers == ("4", "5.5")
    assert ballot.codes.tolist() == [0, 0, -1, 1]
    assert ballot.right.tolist() == [True, False]
    assert ballot_of({"answers": ["4"], "rewards": [1]}).right is None


def test_answers_out_of_responses():
    messages = [{"role": "assistant", "content": "answer is 5"}]
    row = {
        "responses": ["the answer is 3. No, the answer is 4", "none", messages],
        "rewards": [0.1, 0.2, 0.3],
        "answer": "2 + 2, so the answer is 4",
    }
    ballot = ballot_of(row, BOXED)
    assert ballot.answers == ("4", "5")
    assert ballot.codes.tolist() == [0, -1, 1]
    assert ballot.right.tolist() == [True, False]
    assert ballot_of({**row, "answer": "5"}, BOXED).right.tolist() == [False, True]
    assert ballot_of(row, re.compile(r"\d")).answers == ("4", "5")  # without a group, the whole match


def test_labels_of_samples_and_single_scores():
    assert ballot_of({"answers": ["a", "b"], "rewards": [1, 2], "right": [False, True]}).right.tolist() == [False, True]
    for row in ({"reward": 0.3, "right": True}, {"reward": 0.3, "correct": True}):
        ballot = ballot_of(row)
        assert (ballot.rewards.tolist(), ballot.sample_right.tolist()) == ([0.3], [True])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "not a JSON object"),
        (RowError("not_json", "broken"), "broken"),
        ({"rewards": [1]}, 'no "responses"'),
        ({"answers": [], "responses": ["a"], "rewards": []}, 'no "answers"'),
        ({"responses": ["a"], "rewards": [1]}, "--answer_pattern"),
        ({"answers": ["a"]}, 'no "rewards"'),
        ({"answers": ["a"], "rewards": None}, 'no "rewards"'),
        ({"answers": ["a"], "rewards": [1, 2]}, "holds 2 numbers for 1"),
        ({"answers": [["a"]], "rewards": [1]}, r"answers\[0\] is neither"),
        ({"answers": ["a"], "rewards": ["x"]}, r"rewards\[0\] is 'x'"),
        ({"answers": ["a"], "rewards": [1], "correct": ["a"]}, "other things than true and false"),
        ({"answers": ["a", "a"], "rewards": [1, 2], "correct": [True, False]}, "right and wrong"),
        ({"reward": "x", "right": True}, r"reward\[0\]"),
    ],
)
def test_rows_that_cannot_be_used(row, message):
    with pytest.raises(RowError, match=message):
        ballot_of(row)
