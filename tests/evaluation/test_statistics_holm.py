from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.evaluation.statistics import holm


def test_by_hand() -> None:
    # 4 x 0.005; 3 x 0.01; 2 x 0.03; and 0.04, which may not be below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def rejected(p_values: list[float], level: float) -> set[int]:
    """Holm's own procedure: from the smallest on, reject while p <= level / (number left)."""
    left = sorted(range(len(p_values)), key=p_values.__getitem__)
    found: set[int] = set()
    while left and p_values[left[0]] * len(left) <= level:
        found.add(left.pop(0))
    return found


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.999))
def test_adjusted_values_reject_what_the_procedure_rejects(p_values: list[float], level: float) -> None:
    assert {k for k, p_value in enumerate(holm(p_values)) if p_value <= level} == rejected(p_values, level)
