from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.evaluation.similarity import token_f1

texts = st.text(alphabet="ab, .É\n", max_size=30)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("the cat sat", "The CAT sat", 1.0),
        ("the cat sat", "sat the cat", 1.0),  # order does not count
        ("a a b", "a b b", 2 * 2 / 6),  # a once, b once
        ("yes!", "yes", 2 * 1 / 3),  # punctuation is a token
        ("don't", "don t", 2 * 2 / 5),
        ("one two", "three four", 0.0),
        ("", "", 1.0),
        (" \n", "", 1.0),
        ("", "word", 0.0),
        ("Élan vital", "élan", 2 * 1 / 3),
    ],
)
def test_known_values(a: str, b: str, expected: float) -> None:
    assert token_f1(a, b) == pytest.approx(expected, abs=1e-12)


@given(texts, texts)
def test_is_symmetric_bounded_and_one_for_the_same_text(a: str, b: str) -> None:
    assert token_f1(a, b) == token_f1(b, a)
    assert 0.0 <= token_f1(a, b) <= 1.0
    assert token_f1(a, a) == 1.0


@given(st.lists(st.sampled_from("xyz,"), min_size=1), st.lists(st.sampled_from("xyz,"), min_size=1))
def test_agrees_with_precision_and_recall(a: list[str], b: list[str]) -> None:
    rest, overlap = list(b), 0
    for token in a:
        if token in rest:
            rest.remove(token)
            overlap += 1
    precision, recall = overlap / len(a), overlap / len(b)
    expected = 2 * precision * recall / (precision + recall) if overlap else 0.0
    assert token_f1(" ".join(a), " ".join(b)) == pytest.approx(expected, abs=1e-12)
