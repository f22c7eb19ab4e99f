from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from aplot_lightning.evaluation.report import GroupResults, Mean, SetResult, compare_runs
from aplot_lightning.evaluation.report.plots import (
    BLUE,
    ORANGE,
    RUN_COLORS,
    VERMILLION,
    draw_accuracies,
    draw_curves,
    draw_margins,
)

MakeRun = Callable[..., Path]


def share(image: np.ndarray, color: str) -> float:
    """How much of a picture has a color."""
    return float(np.mean(np.abs(image[..., :3] - np.array(to_rgb(color))).max(axis=-1) < 0.02))


def table(accuracies: dict[str, list[float | None]], runs: list[str]) -> GroupResults:
    results = {
        (run, name): SetResult(None if value is None else Mean(value, (value - 0.02, value + 0.02), 9, 1), None)
        for name, values in accuracies.items()
        for run, value in zip(runs, values, strict=True)
    }
    return GroupResults(dict.fromkeys(runs, ()), dict.fromkeys(accuracies, "ood"), results, None, {}, {}, [])


def test_runs_have_their_own_colors_in_proportion(make_run: MakeRun, tmp_path: Path) -> None:
    draw_accuracies(compare_runs([make_run("bt", seed=1), make_run("aplot", seed=2)]), tmp_path / "runs.png")
    image = imread(tmp_path / "runs.png")
    assert image.shape[0] == pytest.approx(4.2 * 150, abs=1)
    assert share(image, RUN_COLORS[0]) == pytest.approx(share(image, RUN_COLORS[1]), rel=0.2)
    assert share(image, RUN_COLORS[0]) > 0.05
    assert share(image, RUN_COLORS[2]) == 0


def test_bars_are_as_high_as_accuracies(tmp_path: Path) -> None:
    draw_accuracies(table({"id": [0.9], "a": [0.2], "OOD mean": [0.4]}, ["run"]), tmp_path / "one.png")
    image = imread(tmp_path / "one.png")
    assert share(image, ORANGE) / share(image, BLUE) == pytest.approx(0.2 / 0.9, rel=0.1)
    assert share(image, VERMILLION) / share(image, BLUE) == pytest.approx(0.4 / 0.9, rel=0.1)


def test_odd_names_missing_values_and_many_runs_are_drawn(tmp_path: Path) -> None:
    runs = [f"_run $x_{place}" for place in range(9)]
    accuracies: dict[str, list[float | None]] = {
        "id": [None, *[0.5] * 8],
        "a long $name of_a^set with spaces": [0.0, *[1.0] * 8],
    }
    draw_accuracies(table(accuracies, runs), tmp_path / "many.png")
    assert share(imread(tmp_path / "many.png"), RUN_COLORS[5]) > 0.01


def test_curves_are_drawn_with_what_there_is(tmp_path: Path) -> None:
    steps = np.arange(1, 101)
    loss, accuracy = (steps, np.exp(-steps / 50)), (steps[::25], np.linspace(0.5, 0.8, 4))
    draw_curves({"train/loss": loss, "id/accuracy": accuracy}, tmp_path / "both.png")
    draw_curves({"train/loss": (steps[:1], np.ones(1))}, tmp_path / "loss.png")
    draw_curves({"ood_mean/accuracy": accuracy}, tmp_path / "accuracy.png")
    widths = {name: imread(tmp_path / f"{name}.png").shape[1] for name in ("both", "loss", "accuracy")}
    assert widths["both"] == 2 * widths["loss"] == 2 * widths["accuracy"]
    assert share(imread(tmp_path / "accuracy.png"), VERMILLION) > 0


def test_margins_are_drawn_even_when_they_are_all_equal(tmp_path: Path) -> None:
    columns = {name: np.zeros(3) for name in ("margin", "similarity", "cost", "gap")} | {"step": np.full(3, 5)}
    draw_margins(columns, tmp_path / "margins.png")
    assert share(imread(tmp_path / "margins.png"), VERMILLION) > 0


def test_nobody_elses_matplotlib_changes(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_accuracies(table({"id": [0.9]}, ["run"]), tmp_path / "one.png")
    assert dict(matplotlib.rcParams) == before
