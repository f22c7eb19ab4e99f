from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.evaluation.report.estimates import Mean
from aplot_lightning.evaluation.report.rendering import markdown_table
from aplot_lightning.evaluation.report.tables import (
    Table,
    duration,
    escape,
    estimate_text,
    interval_text,
    number,
    shorten,
    text_table,
)


def test_text_table_is_aligned() -> None:
    table = text_table(["set", "accuracy"], [["id", "0.800"], ["新しい", "-"]])
    assert table.split("\n") == [
        "set     accuracy",
        "----------------",
        "id         0.800",
        "新しい         -",  # wide characters take two columns
    ]


def test_markdown_table() -> None:
    assert markdown_table(Table(["a|", "b", "c"], [["1", "2|", "[3]"]], left=2)) == (
        "| a\\| | b | c |\n| :-- | :-- | --: |\n| 1 | 2\\| | [3] |"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a | b", r"a \| b"),
        ("`code` *bold* [x](y)", r"\`code\` \*bold\* \[x\](y)"),
        ("two\nlines\r\n\tand  more", "two lines and more"),
        ("a\u2028b\x00c\u202ed", "a b c d"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("back\\slash", r"back\\slash"),
        ("reversed_cue", "reversed_cue"),
        ("_it_ is", r"\_it\_ is"),
        ("", ""),
    ],
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


@given(st.text())
def test_escaped_text_stays_in_its_cell(text: str) -> None:
    escaped = escape(text)
    assert escaped.isprintable()
    assert not re.search(r"[<>]", escaped)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*\[\]]", escaped)  # each has an odd number of backslashes before it
    assert not re.search(r"(?<!\\)(?:\\\\)*\\$", escaped)  # and none is left to escape the end of the cell


@given(st.text(), st.integers(10, 50))
def test_shorten_keeps_both_ends(text: str, length: int) -> None:
    line = " ".join(text.split())
    short = shorten(text, length)
    assert len(short) <= length
    if len(line) <= length:
        assert short == line
    else:
        start, end = short.split("…")[0], short.rsplit("…", 1)[1]
        assert line.startswith(start)
        assert line.endswith(end)


def test_numbers() -> None:
    assert number(None) == interval_text(None) == estimate_text(None) == "-"
    assert number(0.12349) == "0.123"
    assert number(0.0123, sign=True) == "+0.012"
    assert interval_text([0.1, 0.25]) == "[0.100, 0.250]"
    assert estimate_text(Mean(0.8, (0.75, 0.85), 9, 1)) == "0.800 [0.750, 0.850]"
    assert estimate_text(Mean(-0.01, (-0.02, 0.003), 9, 1), sign=True) == "-0.010 [-0.020, +0.003]"
    assert estimate_text(Mean(0.8, None, 1, 1)) == "0.800"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (4.21, 59.4, 125, 7380)] == ["4.2 s", "59.4 s", "2 min 5 s", "2 h 3 min"]
    assert duration(None) == "-"
