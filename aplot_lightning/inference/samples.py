"""Rows of scored samples, as `score` writes them: what they answer, what they are worth, and whether they are right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.inference.votes import Ballot


def rewards_of(row: Mapping[str, Any], count: int | None = None) -> list[float]:
    """The finite ``rewards`` of a row, `count` of them where that is given. Raises RowError otherwise."""
    rewards = row.get("rewards")
    if rewards is None:
        raise RowError("missing_field", 'no "rewards": score the responses first')
    return numbers_of(rewards, "rewards", count)


def numbers_of(values: Any, name: str, count: int | None = None) -> list[float]:
    """A list of finite numbers, `count` of them where that is given. Raises RowError otherwise."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise RowError("wrong_type", f'"{name}" is no list of numbers')
    if count is not None and len(values) != count:
        raise RowError("wrong_type", f'"{name}" holds {len(values)} numbers for {count} responses')
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise RowError("wrong_type", f"{name}[{place}] is {value!r}, no finite number")
    return [float(value) for value in values]


def ballot_of(row: Any, pattern: re.Pattern[str] | None = None) -> Ballot:
    """The samples of one row.

    Args:
        row: ``answers`` (texts or numbers, null for none), or ``responses`` that `pattern` finds the answer in, the
            last match of it, its first group where it has one; ``rewards``; and where they are known the right answer
            (``correct`` or ``answer``: text or number, in which the pattern is looked for too) or a list of true and
            false, one a sample. A row of one labelled score, ``reward`` and ``correct`` or ``right`` true or false, is
            a ballot of one sample.
        pattern: what an answer looks like in a response.

    Raises:
        RowError: no such row.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, Mapping):
        raise RowError("wrong_type", "not a JSON object")
    correct = next((row[name] for name in ("correct", "right", "answer") if row.get(name) is not None), None)
    if isinstance(correct, bool):
        (reward,) = numbers_of([row.get("reward")], "reward")
        return Ballot.of([""], [reward], [correct])
    answers = _answers(row, pattern)
    rewards = rewards_of(row, len(answers))
    try:
        return Ballot.of(answers, rewards, _correct(correct, pattern))
    except ValueError as error:
        raise RowError("wrong_type", str(error)) from error


def _answers(row: Mapping[str, Any], pattern: re.Pattern[str] | None) -> list[str | None]:
    name = "answers" if row.get("answers") is not None else "responses"
    values = row.get(name)
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise RowError("missing_field", f'no "{name}", a list of at least one')
    if name == "answers":
        return [_text(value, f"answers[{place}]") for place, value in enumerate(values)]
    if pattern is None:
        raise RowError("missing_field", 'no "answers": give them, or --answer_pattern to find them in the responses')
    return [_found(_response_text(value, place), pattern) for place, value in enumerate(values)]


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("wrong_type", f"{name} is neither text nor a number: {value!r}")
    return str(value)


def _response_text(value: Any, place: int) -> str:
    """The text of a response, of its last message where it is messages."""
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise RowError("wrong_type", f"responses[{place}] is no text")
    return value


def _found(text: str, pattern: re.Pattern[str]) -> str | None:
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    return matches[-1].group(1 if pattern.groups else 0)


def _correct(value: Any, pattern: re.Pattern[str] | None) -> str | list[bool] | None:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not all(isinstance(mark, bool) for mark in value):
            raise RowError("wrong_type", '"correct" is a list of other things than true and false')
        return list(value)
    text = _text(value, "the right answer")
    if text is None or pattern is None:
        return text
    found = _found(text, pattern)
    return text if found is None else found
