"""The pictures of reports: PNG files, drawn without pyplot so that nobody's backend or open figures change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aplot_lightning.evaluation.report.compare import OOD_MEAN, RunTable, compare_runs
from aplot_lightning.evaluation.report.outcomes import Estimate
from aplot_lightning.evaluation.report.runs import Columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]

# Okabe and Ito's colours, which colour-blind readers tell apart (jfly.uni-koeln.de/color)
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
RUN_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
HATCHES = ("", "///", "...", "xxx")  # for runs beyond the colours
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


def plot_runs(run_dirs: Sequence[str | Path], path: str | Path) -> None:
    """A PNG with the accuracy of several runs: bars with 95 % intervals, grouped by set, one colour per run.

    Raises:
        UserError: no directory is given, or one is not a finished run.
    """
    draw_accuracies(compare_runs(run_dirs), path)


def draw_accuracies(table: RunTable, path: str | Path, *, title: str = "Accuracy by set") -> None:
    """A PNG with the bars of a table of runs. With one run, the colour tells ID, OOD sets and OOD mean apart."""
    from matplotlib.patches import Patch

    groups, runs = np.arange(len(table.rows)), len(table.runs)
    width = 0.8 / runs if runs > 1 else 0.6
    with new_figure(path, width=max(5.5, 1.6 + len(groups) * max(1.0, 0.42 * runs + 0.3)), height=4.2) as figure:
        axes = figure.subplots()
        fills: list[dict[str, Any]] = []
        for place in range(runs):
            fills.append(_fill(place) if runs > 1 else {"color": [_set_colour(row.name) for row in table.rows]})
            positions = groups + (place - (runs - 1) / 2) * width
            accuracies = [row.accuracies[place] for row in table.rows]
            _bars(axes, positions, accuracies, 0.92 * width, fills[-1], numbers=runs <= 4)
        _chance_line(axes)
        _set_names(axes, [row.name for row in table.rows])
        axes.set(ylim=(0, 1.08), yticks=np.linspace(0, 1, 6), ylabel="accuracy (share of pairs)")
        axes.set_title(f"{title}, with 95 % intervals over prompts", pad=12)
        if runs > 1:
            handles = [Patch(label=legend_label(run), **fill) for run, fill in zip(table.runs, fills, strict=True)]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(runs, 4))


def _bars(
    axes: Axes,
    positions: NDArray[Any],
    accuracies: Sequence[Estimate | None],
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


def _fill(place: int) -> dict[str, Any]:
    """The colour of a run, with a hatch where there are more runs than colours."""
    hatch = HATCHES[place // len(RUN_COLOURS) % len(HATCHES)]
    return {"facecolor": RUN_COLOURS[place % len(RUN_COLOURS)], "edgecolor": "white", "hatch": hatch}


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


def _set_colour(name: str) -> str:
    return {"id": BLUE, OOD_MEAN: VERMILLION}.get(name, ORANGE)


def draw_curves(curves: Curves, path: str | Path) -> None:
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
                label, colour = names[tag]
                axes.plot(*curves[tag], color=colour, label=label, marker="o", markersize=3.5, linewidth=1.6)
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
    """Each pair's margin against the similarity of its two responses and against its own cost, coloured by step."""
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
            centres, medians = _binned_medians(margins[name], margins["margin"])
            axes.plot(
                centres, medians, color=VERMILLION, linewidth=2, marker="o", markersize=4, label="median of a tenth"
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
