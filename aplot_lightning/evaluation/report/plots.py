"""The plots of reports as PNG files, drawn without pyplot: the caller's backend and figures stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aplot_lightning.evaluation.report.convergence import Curve
from aplot_lightning.evaluation.report.estimates import Difference, Mean
from aplot_lightning.evaluation.report.frame import ID, OOD_MEAN
from aplot_lightning.evaluation.report.results import GroupResults
from aplot_lightning.evaluation.report.runs import Columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which color-blind readers tell apart (jfly.uni-koeln.de/color)
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
RUN_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
MARKERS = ("o", "s", "^", "D")  # for groups beyond the colors
HATCHES = ("", "///", "...", "xxx")  # for runs beyond the colors
CHANCE = "#555555"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "grid.color": "#e5e5e5",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # names of sets and runs are no formulas
}


def draw_accuracies(results: GroupResults, path: str | Path, *, title: str = "Accuracy by set") -> None:
    """A PNG with bars and 95 % intervals, grouped by set, one color for each run.

    With one run, colors distinguish ID, OOD sets and OOD mean.
    """
    from matplotlib.patches import Patch

    runs, sets = list(results.groups), list(results.sets)
    width = 0.8 / len(runs) if len(runs) > 1 else 0.6
    with new_figure(path, width=max(5.5, 1.6 + len(sets) * max(1.0, 0.42 * len(runs) + 0.3)), height=4.2) as figure:
        axes = figure.subplots()
        fills: list[dict[str, Any]] = []
        for index, run in enumerate(runs):
            fills.append(_fill(index) if len(runs) > 1 else {"color": [_set_color(name) for name in sets]})
            positions = np.arange(len(sets)) + (index - (len(runs) - 1) / 2) * width
            accuracies = [results.result(run, name).accuracy for name in sets]
            _bars(axes, positions, accuracies, 0.92 * width, fills[-1], numbers=len(runs) <= 4)
        _chance_line(axes)
        _set_names(axes, sets)
        axes.set(ylim=(0, 1.08), yticks=np.linspace(0, 1, 6), ylabel="accuracy (share of pairs)")
        axes.set_title(f"{title}, with 95 % intervals over prompts", pad=12)
        if len(runs) > 1:
            handles = [Patch(label=legend_label(run), **fill) for run, fill in zip(runs, fills, strict=True)]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(runs), 4))


def _bars(
    axes: Axes,
    positions: NDArray[Any],
    accuracies: Sequence[Mean | None],
    width: float,
    fill: Mapping[str, Any],
    numbers: bool,
) -> None:
    axes.bar(positions, [accuracy.value if accuracy else 0 for accuracy in accuracies], width, linewidth=0, **fill)
    for position, accuracy in zip(positions, accuracies, strict=True):
        if accuracy is None:
            axes.annotate("not evaluated", (position, 0.02), ha="center", fontsize=7, color=CHANCE, rotation=90)
            continue
        low, high = accuracy.interval or (accuracy.value, accuracy.value)
        axes.plot([position, position], [low, high], color="black", linewidth=1.4, solid_capstyle="butt", zorder=4)
        if numbers:
            axes.annotate(f"{accuracy.value:.2f}", (position, high + 0.015), ha="center", va="bottom", fontsize=8.5)


def _fill(index: int) -> dict[str, Any]:
    """The color of a run, with a hatch where there are more runs than colors."""
    hatch = HATCHES[index // len(RUN_COLORS) % len(HATCHES)]
    return {"facecolor": RUN_COLORS[index % len(RUN_COLORS)], "edgecolor": "white", "hatch": hatch}


def _chance_line(axes: Axes) -> None:
    axes.axhline(0.5, color=CHANCE, linestyle="--", linewidth=1.2, zorder=3)
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (3, 0), "textcoords": "offset points"}
    axes.annotate("chance", (1, 0.5), va="center", color=CHANCE, fontsize=9, **beside)


def _set_names(axes: Axes, names: Sequence[str]) -> None:
    slanted: dict[str, Any] = (
        {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 12 else {}
    )
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.grid(axis="x", visible=False)


def _set_color(name: str) -> str:
    return {"id": BLUE, OOD_MEAN: VERMILLION}.get(name, ORANGE)


def draw_curves(curves: Mapping[str, Curve], path: str | Path) -> None:
    """Training loss on the left, accuracies on the right, over optimizer steps; a panel without curves is left out."""
    names = {
        "validation/accuracy": ("validation (selects)", GREEN),
        "id/accuracy": ("ID", BLUE),
        "ood_mean/accuracy": (OOD_MEAN, VERMILLION),
    }
    loss, accuracies = curves.get("train/loss"), [tag for tag in names if tag in curves]
    panels = (loss is not None) + bool(accuracies)
    with new_figure(path, width=4.8 * panels, height=3.6) as figure:
        left, *_ = panel = figure.subplots(1, panels, squeeze=False)[0]
        for axes in panel:
            axes.set_xlabel("optimizer step")
            axes.locator_params(axis="x", integer=True)
        if loss is not None:
            _loss_curve(left, *loss)
        if accuracies:
            axes = panel[-1]
            for tag in accuracies:
                label, color = names[tag]
                axes.plot(*curves[tag], color=color, label=label, marker="o", markersize=3.5, linewidth=1.6)
            axes.axhline(0.5, color=CHANCE, linestyle="--", linewidth=1.2, label="chance")
            axes.margins(y=0.08)  # also the chance line stands clear of the edge
            axes.set_ylabel("accuracy (share of pairs)")
            axes.set_title("Accuracy on held-out pairs")
            axes.legend(fontsize=9)


def _loss_curve(axes: Axes, steps: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
    window = max(1, len(losses) // 20)
    axes.plot(steps, losses, color=SKY if window > 1 else BLUE, linewidth=1, alpha=0.7 if window > 1 else 1)
    if window > 1:
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        middle = (window - 1) // 2
        axes.plot(
            steps[middle : middle + len(smooth)], smooth, color=BLUE, linewidth=1.8, label=f"mean of {window} points"
        )
        axes.legend(fontsize=9)
    axes.set_ylabel("loss (mean per pair)")
    axes.set_title("Training loss")


def draw_margins(margins: Columns, path: str | Path) -> None:
    """Each pair's margin against the similarity of its two responses and against its own cost, colored by step."""
    panels = {
        "similarity": "similarity of chosen and rejected (cosine)",
        "cost": "the pair's own transport cost",
    }
    with new_figure(path, width=9.6, height=3.8) as figure:
        both = figure.subplots(1, 2, sharey=True)
        for axes, (name, label) in zip(both, panels.items(), strict=True):
            points = axes.scatter(
                margins[name], margins["margin"], c=margins["step"], cmap="viridis", s=9, alpha=0.6, linewidths=0
            )
            centers, medians = _binned_medians(margins[name], margins["margin"])
            axes.plot(
                centers, medians, color=VERMILLION, linewidth=2, marker="o", markersize=4, label="median of a tenth"
            )
            axes.set_xlabel(label)
        both[0].set_ylabel("margin (reward units)")
        both[0].set_title("Margin against similarity")
        both[1].set_title("Margin against the pair's own cost")
        both[0].legend(fontsize=9)
        figure.colorbar(points, ax=both, label="optimizer step", pad=0.02)


def _binned_medians(x: NDArray[Any], y: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Medians of x and y over tenths of the points in the order of x."""
    tenths = [part for part in np.array_split(np.argsort(x, kind="stable"), 10) if len(part)]
    return [float(np.median(x[part])) for part in tenths], [float(np.median(y[part])) for part in tenths]


def draw_groups(results: GroupResults, folder: str | Path) -> list[Path]:
    """Draws differences.png, id_against_ood.png and learning_curves.png, those with figures; returns their paths.

    Makes the folder if it is missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, plot in {
        "differences": _differences,
        "id_against_ood": _scatter,
        "learning_curves": _learning_curves,
    }.items():
        path = folder / f"{name}.png"
        if plot(results, path):
            drawn.append(path)
    return drawn


def _differences(results: GroupResults, path: Path) -> bool:
    """A forest plot: a panel for ID and one for the OOD mean, a line for each group after the first."""
    others = list(results.groups)[1:]
    panels = {
        name: shown
        for name, shown in results.questions.items()
        if any(results.result(group, name).difference for group in others)
    }
    if not panels:
        return False
    with new_figure(path, width=1.8 + 3.8 * len(panels), height=1.4 + 0.28 * len(others)) as figure:
        for axes, (name, shown) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            for index, group in enumerate(others):
                _difference(axes, index, results.result(group, name).difference)
            axes.axvline(0, color=CHANCE, linestyle="--", linewidth=1.2, zorder=1)
            axes.set_yticks(range(len(others)), others)
            axes.set_ylim(len(others) - 0.5, -0.5)
            axes.locator_params(axis="x", nbins=5)
            axes.grid(axis="y", visible=False)
            axes.set_title(shown)
            axes.set_xlabel(f"accuracy − {results.first}'s")
        figure.suptitle("Differences with 95 % intervals; filled: p < 0.05 after Holm correction", fontsize=10)
    return True


def _difference(axes: Axes, index: int, difference: Difference | None) -> None:
    if difference is None:
        axes.annotate("not comparable", (0, index), xytext=(4, 0), textcoords="offset points", fontsize=7, color=CHANCE)
        return
    clear = difference.significant
    color = (BLUE if difference.value > 0 else VERMILLION) if clear else CHANCE
    if difference.interval is not None:
        axes.plot(difference.interval, [index, index], color=color, linewidth=1.6, solid_capstyle="butt")
    fill = color if clear else "white"
    axes.plot(difference.value, index, marker="o", markersize=5, color=color, markerfacecolor=fill, zorder=3)


def _scatter(results: GroupResults, path: Path) -> bool:
    """ID against OOD mean, a point for each run, and a bolder one for each group's mean."""
    if OOD_MEAN not in results.sets:
        return False
    points = {group: _both(results, group) for group in results.groups}
    if not any(map(len, points.values())):
        return False
    with new_figure(path, width=7.4, height=4.8) as figure:
        axes = figure.subplots()
        for index, (group, both) in enumerate(points.items()):
            if not len(both):
                continue
            looks = _looks(index)
            if len(both) > 1:
                axes.plot(*both.T, linestyle="", markersize=4, alpha=0.45, markeredgewidth=0, **looks)
            label = legend_label(group)
            axes.plot(*both.mean(axis=0), linestyle="", markersize=8, markeredgecolor="white", label=label, **looks)
        axes.set_xlabel("ID accuracy")
        axes.set_ylabel("OOD mean accuracy")
        axes.set_title("Each run, and the mean of each group")
        figure.legend(loc="outside right upper", fontsize=8, ncols=1 + len(points) // 20)
    return True


def _both(results: GroupResults, group: str) -> NDArray[np.float64]:
    """ID and OOD mean accuracy of the seeds that have both, (seeds, 2)."""
    one, other = (results.values(group, name, "accuracy") for name in (ID, OOD_MEAN))
    return np.array([(one[seed], other[seed]) for seed in one if seed in other]).reshape(-1, 2)


def _learning_curves(results: GroupResults, path: Path) -> bool:
    """Validation accuracy over steps: the mean over the seeds that were validated at the same steps."""
    curves = {group: _mean_curve(found) for group, found in results.curves.items() if found}
    if not curves:
        return False
    with new_figure(path, width=7.4, height=4.2) as figure:
        axes = figure.subplots()
        for index, group in enumerate(results.groups):
            if group in curves:
                axes.plot(*curves[group], linewidth=1.5, markersize=3.5, label=legend_label(group), **_looks(index))
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


def _looks(index: int) -> dict[str, Any]:
    """A color, and another marker where there are more groups than colors."""
    return {
        "color": RUN_COLORS[index % len(RUN_COLORS)],
        "marker": MARKERS[index // len(RUN_COLORS) % len(MARKERS)],
    }


def legend_label(text: str) -> str:
    """A label that legends show: they hide those that start with an underscore."""
    return f" {text}" if text.startswith("_") else text


@contextmanager
def new_figure(path: str | Path, *, width: float, height: float) -> Iterator[Figure]:
    """A figure to draw on, which is then written as PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure
        figure.savefig(path)
