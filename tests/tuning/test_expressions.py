from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.expressions import Expression

NUMBERS = st.one_of(st.integers(-50, 50), st.floats(-50, 50))


@st.composite
def texts(draw: st.DrawFn, depth: int = 3) -> str:
    """Arithmetic as a user might write it, over the names a and b."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["a", "b", "1", "2.5", "1e-3", "-3"]))
    left, right = draw(texts(depth - 1)), draw(texts(depth - 1))
    return f"({left} {draw(st.sampled_from(['+', '-', '*', '/', '//', '%']))} {right})"


@given(texts(), NUMBERS, NUMBERS)
def test_it_reckons_as_python_does(text: str, a: float, b: float) -> None:
    values = {"a": a, "b": b}
    try:
        wanted = eval(text, {"__builtins__": {}}, dict(values))
    except (ZeroDivisionError, OverflowError):
        with pytest.raises(UserError, match="cannot be reckoned"):
            Expression(text, "key")(values)
        return
    found = Expression(text, "key")(values)
    assert found == wanted or (math.isnan(found) and math.isnan(wanted))


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "share.real", "f(1)", "[1]", "'a'", "True", "2 ** 9", "lambda: 1", "a if b else c", "x[0]"],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^space\.x\.sets\.key: .* may not stand in") as caught:
        Expression(text, "space.x.sets.key")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["1 -", "", "a b", "1\n+ 2;"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no arithmetic"):
        Expression(text, "key")


def test_a_name_alone_holds_any_value_and_a_text_is_no_number() -> None:
    assert Expression("a", "key")({"a": "mass"}) == "mass"
    assert Expression("a", "key").is_name
    assert not Expression("1 - a", "key").is_name
    with pytest.raises(UserError, match="a text is no number"):
        Expression("2 * a", "key")({"a": "mass"})
