from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aplot_lightning.evaluation.report import compare_groups, groups_page, sentences
from aplot_lightning.evaluation.report.convergence import Convergence, steps_to_converge
from aplot_lightning.evaluation.report.group_page import convergence_text

MakeRun = Callable[..., Path]


def curve(*accuracies: float) -> tuple[np.ndarray, np.ndarray]:
    """Validated every ten steps."""
    return 10 * np.arange(1, len(accuracies) + 1), np.array(accuracies)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ((0.55, 0.6, 0.68, 0.685, 0.7), Convergence(50)),  # the bar is 0.69: not yet at 0.685
        ((0.55, 0.6, 0.68, 0.691, 0.7), Convergence(40)),
        ((0.55, 0.695, 0.6, 0.69, 0.7), Convergence(20)),  # the first time counts
        ((0.55, 0.6, 0.62, 0.65, 0.9), Convergence(50)),
        ((0.8, 0.8, 0.8, 0.8, 0.8), Convergence(10, at_most=True)),
        ((0.5, 0.9, 0.6, 0.55, 0.5), Convergence(None, reason="ends no better than chance")),
        ((0.5, 0.6, 0.7, 0.8), Convergence(None, reason="4 validations, of the 5 that it takes")),
    ],
)
def test_steps_to_95_percent_by_hand(accuracies: tuple[float, ...], expected: Convergence) -> None:
    assert steps_to_converge(curve(*accuracies)) == expected


def test_no_curve_no_steps() -> None:
    assert steps_to_converge(None) == Convergence(None, reason="no validation curve")


def test_what_the_table_says_of_steps() -> None:
    assert convergence_text([Convergence(100), Convergence(200)]) == "150 ± 71"
    assert convergence_text([Convergence(100), Convergence(100)]) == "100"
    assert convergence_text([Convergence(10, at_most=True), Convergence(10, at_most=True)]) == "≤ 10"
    missing = Convergence(None, reason="ends no better than chance")
    assert convergence_text([Convergence(100), missing]) == "100 (1 of 2 seeds)"
    assert convergence_text([missing, missing]) == "- (ends no better than chance)"


def test_costs_come_from_the_runs(make_run: MakeRun) -> None:
    table = compare_groups({"bt": [make_run("bt/0"), make_run("bt/1")], "bare": [make_run("bare", bare=True)]})
    # 0.5 + 0.3 (1 - exp(-step / 80)) every 50 steps to 300: 95 % of the last is at the fifth; loggers count from 0
    assert table.convergence["bt"] == {0: Convergence(251), 1: Convergence(251)}
    assert table.values("bt", "train", "seconds") == {0: 92.5, 1: 92.5}
    page = groups_page(table)
    assert "| bt | 300 | 251 | 92.5 | 103 | - |" in page
    assert "| bare | 300 | - (no validation curve) | 92.5 | 103 | - |" in page


def test_the_sentence_on_speed(make_run: MakeRun) -> None:
    run, bare = make_run("bt"), make_run("bare", bare=True)
    table = compare_groups({"bt": [run], "same": [run], "bare": [bare]})
    assert sentences(table)[2] == (
        "speed: bt took 251 steps to 95 % of its own final validation accuracy above chance, and none of 1 others took "
        "fewer (means over seeds, not tested; a group that ends lower is there sooner)."
    )
    assert len(sentences(compare_groups({"bare": [bare], "bt": [run]}))) == 2
    table.convergence["same"][0] = Convergence(101)
    assert "and 1 of 1 others took fewer" in sentences(table)[2]
