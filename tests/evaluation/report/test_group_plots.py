from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from aplot_lightning.evaluation.report import compare_groups, draw_groups
from aplot_lightning.evaluation.report.plots import BLUE, GREEN, ORANGE, VERMILLION, _mean_curve

MakeRun = Callable[..., Path]


def share(path: Path, color: str) -> float:
    """How much of a picture has a color."""
    return float(np.mean(np.abs(imread(path)[..., :3] - np.array(to_rgb(color))).max(axis=-1) < 0.02))


def test_pictures_show_what_differs(make_run: MakeRun, tmp_path: Path) -> None:
    sets = {"id": 0.6, "a": 0.6, "b": 0.6}
    better, worse = dict.fromkeys(sets, 0.9), {"id": 0.6, "a": 0.2, "b": 0.2}
    groups = {
        "bt": [make_run("bt", seed=0, sets=sets)],
        "better": [make_run("better", seed=5, sets=better)],
        "worse": [make_run("worse", seed=9, sets=worse)],
    }
    table = compare_groups(groups)
    drawn = draw_groups(table, tmp_path / "plots")
    assert [path.name for path in drawn] == ["differences.png", "id_against_ood.png", "learning_curves.png"]
    differences, scatter, curves = drawn
    assert share(differences, BLUE) > 2e-4
    assert share(differences, VERMILLION) > 1e-4
    for color in (BLUE, ORANGE, GREEN):
        assert share(scatter, color) > 2e-4
    assert share(curves, GREEN) > 1e-3  # the last of three equal curves
    seeds = [groups["bt"][0], make_run("again", seed=1, sets=sets)]
    equal = draw_groups(compare_groups({"bt": seeds, "same": seeds}), tmp_path / "equal")
    assert share(equal[0], BLUE) == share(equal[0], VERMILLION) == 0


def test_what_cannot_be_drawn_is_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    bare = compare_groups({"bare": [make_run("bare", bare=True)]})
    assert draw_groups(bare, tmp_path / "none") == []
    one = compare_groups({"bt": [make_run("bt", sets={"id": 0.8})]})
    assert [path.name for path in draw_groups(one, tmp_path / "one")] == ["learning_curves.png"]


def test_many_groups_and_odd_names_are_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("bt", seed=1), make_run("bare", bare=True)]
    table = compare_groups({f"_name $x_{place}": [runs[place == 3]] for place in range(24)})
    for path in draw_groups(table, tmp_path):
        assert imread(path).shape[1] > 800


def test_mean_curves_are_over_the_steps_that_all_seeds_have() -> None:
    one = np.array([10, 20, 30]), np.array([0.5, 0.6, 0.7])
    other = np.array([10, 30, 40]), np.array([0.7, 0.9, 1.0])
    steps, accuracies = _mean_curve({0: one, 1: other})
    assert steps.tolist() == [10, 30]
    assert accuracies == pytest.approx([0.6, 0.8])
