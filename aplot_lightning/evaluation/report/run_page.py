"""report.md of one run, and comparison.md of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aplot_lightning.evaluation.report.frame import ID, OOD, OOD_MEAN, SELECTING, set_kinds
from aplot_lightning.evaluation.report.group_page import set_heading
from aplot_lightning.evaluation.report.plots import draw_accuracies, draw_curves, draw_margins
from aplot_lightning.evaluation.report.rendering import render
from aplot_lightning.evaluation.report.results import GroupResults, compare_runs
from aplot_lightning.evaluation.report.runs import Columns, Run, read_run
from aplot_lightning.evaluation.report.tables import (
    Table,
    duration,
    estimate_text,
    interval_text,
    number,
    quantity,
    shorten,
)
from aplot_lightning.evaluation.statistics import rank_correlation
from aplot_lightning.files import write_text

if TYPE_CHECKING:
    import pandas as pd

WORST_ERRORS = 20

# columns of the table beside accuracy and interval: heading -> metric of metrics.json
METRICS = {
    "hard third": "hard_accuracy",
    "longer chosen": "longer_chosen_accuracy",
    "shorter chosen": "shorter_chosen_accuracy",
    "AUROC": "auroc",
    "ECE": "ece",
    "log loss": "log_loss",
    "mean gap": "mean_gap",
    "reward~length": "length_correlation",
}
LOSS = "train/loss"
ACCURACIES = ("validation/accuracy", "id/accuracy", "ood_mean/accuracy")


def runs_table(results: GroupResults, *, minus: str = "-") -> Table:
    """Accuracies of runs side by side: one row a set, one column a run, then each run's difference to the first."""
    first, *others = results.groups
    rows = []
    for name in results.sets:
        each = [results.result(run, name) for run in results.groups]
        rows.append(
            [
                name,
                str(max((result.accuracy.pairs for result in each if result.accuracy), default=0)),
                *(estimate_text(result.accuracy) for result in each),
                *(estimate_text(result.difference, sign=True) for result in each[1:]),
            ]
        )
    return Table(["set", "pairs", *results.groups, *(f"{run} {minus} {first}" for run in others)], rows)


def runs_text(results: GroupResults) -> str:
    """The table of runs side by side and its notes, for a terminal."""
    return "\n".join([runs_table(results).text(), *results.notes])


def write_comparison_of_runs(results: GroupResults, folder: Path) -> Path:
    """Writes comparison.md and comparison.png of several runs into a folder; returns the path of the former.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw_accuracies(results, folder / "comparison.png")
    path = folder / "comparison.md"
    write_text(path, render("runs", accuracy=runs_table(results, minus="−"), notes=results.notes))
    return path


def write_run_report(run_dir: str | Path) -> Path:
    """Writes report.md into a run directory, and its plots into the folder plots/ beside it.

    Reads only the files of the run, so it can be written again at any time. If a run has no accuracies (it was not
    evaluated), no curves or no margins, a sentence says so.

    Returns:
        The path of report.md.

    Raises:
        UserError: it is not a finished run directory, or one of its files is broken.
    """
    run = read_run(run_dir)
    plots = run.path / "plots"
    plots.mkdir(exist_ok=True)
    results = compare_runs([run.path])
    evaluated = any(result.accuracy for result in results.results.values())
    if evaluated:
        draw_accuracies(results, plots / "accuracy.png", title="Accuracy in distribution and out of distribution")
    curves = run.scalars([LOSS, *ACCURACIES])
    if curves:
        draw_curves(curves, plots / "learning_curve.png")
    page = render(
        "run",
        label=results.first,
        facts=_facts(run),
        accuracy=_accuracy_table(results),
        evaluated=evaluated,
        subsets=_subset_table(results),
        curves=bool(curves),
        margins=_margins(run, plots / "margins.png"),
        errors=_error_table(run),
    )
    path = run.path / "report.md"
    write_text(path, page)
    return path


def _facts(run: Run) -> Table:
    """What the run is and what its training took."""
    train = run.metrics.get("train") or {}
    model = run.config.get("model") or {}
    model = model.get("init_args") or model
    command = run.record.get("command") or []
    rows = {
        "objective": describe_objective(model.get("objective")),
        "backbone": str(model.get("backbone")),
        "training data": str((run.config.get("data") or {}).get("train")),
        "command": command if isinstance(command, str) else " ".join(map(str, command)),
        "code": str(run.record.get("git_commit")),
        "training": f"{quantity(train.get('steps'))} steps, {quantity(train.get('pairs'))} pairs",
        "time": duration(train.get("seconds")),
        "throughput": f"{quantity(train.get('pairs_per_second'))} pairs/s, "
        f"{quantity(train.get('tokens_per_second'))} tokens/s",
    }
    return Table(["", ""], [[name, value] for name, value in rows.items()], left=2)


def describe_objective(node: Any) -> str:
    """An objective of config.yaml in one line: its components with their arguments; Bradley-Terry if it has none."""
    arguments = (node.get("init_args") or {}) if isinstance(node, Mapping) else {}
    components = [f"{name} {_described(value)}" for name, value in arguments.items() if value is not None]
    return ", ".join(components) or "Bradley-Terry (no margin)"


def _described(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = value.get("init_args") or {}
        inside = ", ".join(f"{name}={_described(argument)}" for name, argument in arguments.items())
        return f"{value['class_path'].rsplit('.', 1)[-1]}({inside})"
    return str(value)


def _accuracy_table(results: GroupResults) -> Table:
    """Every metric of every set; the sets that select come last."""
    frame = results.frame
    kinds = set_kinds(frame)
    tested = {name: kind for name, kind in kinds.items() if kind in (ID, OOD)}
    rows = [_metrics_row(frame, name, kind) for name, kind in tested.items()]
    if OOD_MEAN in results.sets:
        mean = results.result(results.first, OOD_MEAN).accuracy
        figures = [str(mean.pairs), number(mean.value), interval_text(mean.interval)] if mean else ["", "-", "-"]
        rows.append([OOD_MEAN, *figures, *[""] * len(METRICS)])
    rows += [_metrics_row(frame, name, kind) for name, kind in kinds.items() if kind in SELECTING]
    return Table(["set", "pairs", "accuracy", "95 % interval", *METRICS], rows)


def _metrics_row(frame: pd.DataFrame, name: str, kind: str) -> list[str]:
    own = _figures(frame[(frame["set"] == name) & (frame["kind"] == kind) & (frame["subset"] == "")])
    return [set_heading(name, kind), *_accuracy(own), *(number(own.get(metric)) for metric in METRICS.values())]


def _figures(rows: pd.DataFrame) -> dict[str, float]:
    return dict(zip(rows["metric"], rows["value"], strict=True))


def _accuracy(figures: Mapping[str, float]) -> list[str]:
    """Pairs, accuracy and interval."""
    interval = (figures["ci95_low"], figures["ci95_high"]) if "ci95_low" in figures else None
    return [f"{figures.get('pairs', 0):.0f}", number(figures.get("accuracy")), interval_text(interval)]


def _subset_table(results: GroupResults) -> Table:
    """The named subsets of the sets that do not select."""
    frame = results.frame
    own = frame[(frame["subset"] != "") & frame["kind"].isin([ID, OOD])]
    order = [name for name, kind in set_kinds(frame).items() if kind in (ID, OOD)]
    parts = sorted(own.groupby(["set", "subset"]), key=lambda part: (order.index(part[0][0]), part[0][1]))
    rows = [[name, subset, *_accuracy(_figures(part))] for (name, subset), part in parts]
    return Table(["set", "subset", "pairs", "accuracy", "95 % interval"], rows, left=2)


def _margins(run: Run, path: Path) -> dict[str, Any] | None:
    """Draws the margins of the later half of the steps, and returns their figures; None if the run has none."""
    margins = run.margins()
    if margins is None or not len(margins["step"]):
        return None
    steps = np.unique(margins["step"])
    late = margins["step"] >= steps[len(steps) // 2]
    latest = {name: column[late] for name, column in margins.items()}
    draw_margins(latest, path)
    return {
        "first": latest["step"].min(),
        "last": latest["step"].max(),
        "mean": latest["margin"].mean(),
        "between": np.quantile(latest["margin"], [0.1, 0.9]),
        "similarity": _within_steps(latest, "similarity"),
        "cost": _within_steps(latest, "cost"),
        "gap": _within_steps(latest, "gap"),
    }


def _within_steps(margins: Columns, name: str) -> float | None:
    """Mean over steps of the rank correlation of the margin with another column; None if no step has one."""
    correlations = [
        rank_correlation(margins["margin"][step], margins[name][step])
        for step in (margins["step"] == step for step in np.unique(margins["step"]))
    ]
    known = [correlation for correlation in correlations if correlation is not None]
    return float(np.mean(known)) if known else None


def _error_table(run: Run) -> Table:
    rows = []
    for rank, error in enumerate(run.errors()[:WORST_ERRORS], start=1):
        where = " / ".join(filter(None, (error["set"], error.get("subset"), str(error["id"]))))
        gap = number(error["chosen_reward"] - error["rejected_reward"], sign=True)
        rows.append([str(rank), where, gap, *(shorten(str(error[side])) for side in ("prompt", "chosen", "rejected"))])
    header = ["", "set / subset / id", "gap", "prompt", "chosen", "rejected"]
    return Table(header, rows, left=len(header))
