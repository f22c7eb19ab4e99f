"""Pictures of a table of groups, in the looks of the other reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aplot_lightning.evaluation.report.compare import OOD_MEAN
from aplot_lightning.evaluation.report.groups.cells import Difference
from aplot_lightning.evaluation.report.groups.costs import Curve
from aplot_lightning.evaluation.report.groups.groups import ID
from aplot_lightning.evaluation.report.groups.sentences import LEVEL
from aplot_lightning.evaluation.report.plots import BLUE, CHANCE, RUN_COLOURS, VERMILLION, legend_label, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from aplot_lightning.evaluation.report.groups.table import FamilyTable

MARKERS = ("o", "s", "^", "D")  # for groups beyond the colours


def draw(table: FamilyTable, folder: Path) -> list[Path]:
    """Draws those of the three pictures that there are figures for, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, picture in {"differences": _differences, "id_against_ood": _scatter, "learning_curves": _curves}.items():
        path = folder / f"{name}.png"
        if picture(table, path):
            drawn.append(path)
    return drawn


def _differences(table: FamilyTable, path: Path) -> bool:
    """A forest plot: a panel for ID and one for the OOD mean, a line for each group after the first."""
    others = list(table.groups)[1:]
    panels = {
        name: shown
        for name, shown in table.questions.items()
        if any(table.cell(group, name).difference for group in others)
    }
    if not panels:
        return False
    with new_figure(path, width=1.8 + 3.8 * len(panels), height=1.4 + 0.28 * len(others)) as figure:
        for axes, (name, shown) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            for place, group in enumerate(others):
                _difference(axes, place, table.cell(group, name).difference)
            axes.axvline(0, color=CHANCE, linestyle="--", linewidth=1.2, zorder=1)
            axes.set_yticks(range(len(others)), others)
            axes.set_ylim(len(others) - 0.5, -0.5)
            axes.locator_params(axis="x", nbins=5)
            axes.grid(axis="y", visible=False)
            axes.set_title(shown)
            axes.set_xlabel(f"accuracy − {table.first}'s")
        figure.suptitle("Differences with 95 % intervals; filled: p < 0.05 after Holm correction", fontsize=10)
    return True


def _difference(axes: Axes, place: int, difference: Difference | None) -> None:
    if difference is None:
        axes.annotate("not comparable", (0, place), xytext=(4, 0), textcoords="offset points", fontsize=7, color=CHANCE)
        return
    clear = difference.p_holm is not None and difference.p_holm < LEVEL
    colour = (BLUE if difference.value > 0 else VERMILLION) if clear else CHANCE
    if difference.interval is not None:
        axes.plot(difference.interval, [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    fill = colour if clear else "white"
    axes.plot(difference.value, place, marker="o", markersize=5, color=colour, markerfacecolor=fill, zorder=3)


def _scatter(table: FamilyTable, path: Path) -> bool:
    """ID against OOD mean, a point for each run, and a bolder one for each group's mean."""
    if OOD_MEAN not in table.sets:
        return False
    points = {group: _both(table, group) for group in table.groups}
    if not any(map(len, points.values())):
        return False
    with new_figure(path, width=7.4, height=4.8) as figure:
        axes = figure.subplots()
        for place, (group, both) in enumerate(points.items()):
            if not len(both):
                continue
            looks = _looks(place)
            if len(both) > 1:
                axes.plot(*both.T, linestyle="", markersize=4, alpha=0.45, markeredgewidth=0, **looks)
            label = legend_label(group)
            axes.plot(*both.mean(axis=0), linestyle="", markersize=8, markeredgecolor="white", label=label, **looks)
        axes.set_xlabel("ID accuracy")
        axes.set_ylabel("OOD mean accuracy")
        axes.set_title("Each run, and the mean of each group")
        figure.legend(loc="outside right upper", fontsize=8, ncols=1 + len(points) // 20)
    return True


def _both(table: FamilyTable, group: str) -> NDArray[np.float64]:
    """ID and OOD mean accuracy of the seeds that have both, (seeds, 2)."""
    one, other = (table.cell(group, name).metrics.get("accuracy", {}) for name in (ID, OOD_MEAN))
    return np.array([(one[seed], other[seed]) for seed in one if seed in other]).reshape(-1, 2)


def _curves(table: FamilyTable, path: Path) -> bool:
    """Validation accuracy over steps: the mean over the seeds that were validated at the same steps."""
    curves = {group: _mean_curve(cost.curves) for group, cost in table.costs.items() if cost.curves}
    if not curves:
        return False
    with new_figure(path, width=7.4, height=4.2) as figure:
        axes = figure.subplots()
        for place, group in enumerate(table.groups):
            if group in curves:
                axes.plot(*curves[group], linewidth=1.5, markersize=3.5, label=legend_label(group), **_looks(place))
        axes.axhline(0.5, color=CHANCE, linestyle="--", linewidth=1.2)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("validation accuracy")
        axes.set_title("Learning curves, means over seeds")
        figure.legend(loc="outside right upper", fontsize=8, ncols=1 + len(curves) // 20)
    return True


def _mean_curve(curves: Mapping[int, Curve]) -> Curve:
    """The mean at the steps that all curves have."""
    steps = np.array(sorted(set.intersection(*(set(each.tolist()) for each, _ in curves.values()))), dtype=np.int64)
    return steps, np.mean([values[np.isin(each, steps)] for each, values in curves.values()], axis=0)


def _looks(place: int) -> dict[str, Any]:
    """A colour, and another marker where there are more groups than colours."""
    return {
        "color": RUN_COLOURS[place % len(RUN_COLOURS)],
        "marker": MARKERS[place // len(RUN_COLOURS) % len(MARKERS)],
    }
