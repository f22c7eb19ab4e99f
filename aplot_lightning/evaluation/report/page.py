"""report.md of one run: what it is, how well it does, how it got there, and where it fails."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aplot_lightning.evaluation.report.compare import OOD_MEAN, compare_runs
from aplot_lightning.evaluation.report.outcomes import Estimate
from aplot_lightning.evaluation.report.plots import draw_accuracies, draw_curves, draw_margins
from aplot_lightning.evaluation.report.runs import Columns, Run, read_run, run_labels
from aplot_lightning.evaluation.report.tables import escape, interval_text, markdown_table, number, shorten
from aplot_lightning.evaluation.statistics import rank_correlation

WORST_ERRORS = 20

# columns of the table beside accuracy and interval: heading, key in metrics.json
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

HOW_TO_READ = (
    "Figures come from the best checkpoint. Intervals: bootstrap over prompts. Hard third: the pairs whose two "
    "responses share most words. OOD mean: unweighted, over the OOD test sets. Chance is 0.5."
)

LOSS = "train/loss"
ACCURACIES = ("validation/accuracy", "id/accuracy", "ood_mean/accuracy")


def write_run_report(run_dir: str | Path) -> Path:
    """Writes report.md into a run directory, and its plots into the folder plots/ beside it.

    Reads the files of the run only, so it can be written again at any time. Where a run has no accuracies (it was not
    evaluated), no curves or no margins, a sentence stands in their place.

    Returns:
        The path of report.md.

    Raises:
        UserError: it is not a finished run directory, or one of its files is broken.
    """
    run = read_run(run_dir)
    plots = run.path / "plots"
    plots.mkdir(exist_ok=True)
    sections = [
        f"# Run {escape(run_labels([run])[0])}",
        _header(run),
        "## Accuracy in distribution (ID) and out of distribution (OOD)",
        _accuracy(run, plots),
        *_subsets(run),
        "## Learning curve",
        _learning_curve(run, plots),
        "## Margin against similarity",
        _margins(run, plots),
        "## Worst errors",
        _errors(run),
    ]
    path = run.path / "report.md"
    part = path.with_suffix(".md.part")
    part.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def _header(run: Run) -> str:
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
        "training": f"{_count(train.get('steps'))} steps, {_count(train.get('pairs'))} pairs",
        "time": _duration(train.get("seconds")),
        "throughput": f"{_count(train.get('pairs_per_second'))} pairs/s, "
        f"{_count(train.get('tokens_per_second'))} tokens/s",
    }
    return markdown_table(["", ""], [[name, escape(value)] for name, value in rows.items()], left=2)


def describe_objective(node: Any) -> str:
    """An objective of config.yaml in one line: its parts with their arguments; Bradley-Terry for an empty one."""
    arguments = (node.get("init_args") or {}) if isinstance(node, Mapping) else {}
    parts = [f"{name} {_spelled(value)}" for name, value in arguments.items() if value is not None]
    return ", ".join(parts) or "Bradley-Terry (no margin)"


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = value.get("init_args") or {}
        inside = ", ".join(f"{name}={_spelled(argument)}" for name, argument in arguments.items())
        return f"{value['class_path'].rsplit('.', 1)[-1]}({inside})"
    return str(value)


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _accuracy(run: Run, plots: Path) -> str:
    sets = {"id": run.metrics.get("id") or {}, **(run.metrics.get("ood") or {})}
    table = compare_runs([run.path])
    means = {row.name: row.accuracies[0] for row in table.rows}
    rows = [_metrics_row(escape(name), entry) for name, entry in sets.items()]
    if OOD_MEAN in means:
        rows.append(_mean_row(means[OOD_MEAN]))
    rows += [_metrics_row(f"{escape(name)} (selects)", entry) for name, entry in _selecting(run).items()]
    parts = [markdown_table(["set", "pairs", "accuracy", "95 % interval", *METRICS], rows)]
    if any(means.values()):
        draw_accuracies(table, plots / "accuracy.png", title="Accuracy in distribution and out of distribution")
        parts += [
            HOW_TO_READ,
            "![Accuracy of each set with its interval](plots/accuracy.png)",
        ]
    else:
        parts.append("This run was not evaluated (`--trainer.limit_val_batches 0`), so it has no accuracies.")
    return "\n\n".join(parts)


def _selecting(run: Run) -> dict[str, dict[str, Any]]:
    """The sets that may select a checkpoint."""
    validation = {"validation": run.metrics["validation"]} if run.metrics.get("validation") else {}
    return {**validation, **(run.metrics.get("ood_validation") or {})}


def _metrics_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    return [
        name,
        str(entry.get("pairs") or 0),
        number(entry.get("accuracy")),
        interval_text(entry.get("ci95")),
        *(number(entry.get(key)) for key in METRICS.values()),
    ]


def _mean_row(mean: Estimate | None) -> list[str]:
    blank = [""] * len(METRICS)
    if mean is None:
        return [OOD_MEAN, "", "-", "-", *blank]
    return [OOD_MEAN, str(mean.pairs), number(mean.value), interval_text(mean.interval), *blank]


def _subsets(run: Run) -> list[str]:
    """A section, or nothing where no set has named subsets."""
    sets = {"id": run.metrics.get("id") or {}, **(run.metrics.get("ood") or {})}
    rows = [
        [escape(name), escape(subset), str(entry["pairs"]), number(entry["accuracy"]), interval_text(entry["ci95"])]
        for name, figures in sets.items()
        for subset, entry in (figures.get("subsets") or {}).items()
    ]
    if not rows:
        return []
    return ["## Subsets", markdown_table(["set", "subset", "pairs", "accuracy", "95 % interval"], rows, left=2)]


def _learning_curve(run: Run, plots: Path) -> str:
    curves = run.scalars([LOSS, *ACCURACIES])
    if not curves:
        return "There are no TensorBoard events with a loss or an accuracy in this run."
    draw_curves(curves, plots / "learning_curve.png")
    return "![Training loss, and accuracy over optimizer steps](plots/learning_curve.png)"


def _margins(run: Run, plots: Path) -> str:
    margins = run.margins()
    if margins is None or not len(margins["step"]):
        return "This run recorded no margins; Bradley-Terry, for one, asks for none."
    steps = np.unique(margins["step"])
    late = margins["step"] >= steps[len(steps) // 2]
    latest = {name: column[late] for name, column in margins.items()}
    draw_margins(latest, plots / "margins.png")
    low, high = np.quantile(latest["margin"], [0.1, 0.9])
    similarity, cost, gap = (_within_steps(latest, name) for name in ("similarity", "cost", "gap"))
    return (
        f"Steps {latest['step'].min()} to {latest['step'].max()}: mean margin {latest['margin'].mean():.3f} "
        f"(10 to 90 %: {low:.3f} to {high:.3f}). Rank correlation of the margin, within a step, with the similarity of "
        f"the pair's two responses {number(similarity)}, with the pair's own cost {number(cost)}, with its gap "
        f"{number(gap)}. Near 0, the margin says nothing of how hard its own pair is.\n\n"
        "![Margin against similarity and against the pair's own cost](plots/margins.png)"
    )


def _within_steps(margins: Columns, name: str) -> float | None:
    """Mean over steps of the rank correlation of the margin with another column; None where no step has one."""
    correlations = [
        rank_correlation(margins["margin"][step], margins[name][step])
        for step in (margins["step"] == step for step in np.unique(margins["step"]))
    ]
    known = [correlation for correlation in correlations if correlation is not None]
    return float(np.mean(known)) if known else None


def _errors(run: Run) -> str:
    errors = run.errors()[:WORST_ERRORS]
    if not errors:
        return "No errors are recorded."
    rows = []
    for place, error in enumerate(errors, start=1):
        where = " / ".join(filter(None, (error["set"], error.get("subset"), str(error["id"]))))
        gap = number(error["chosen_reward"] - error["rejected_reward"], sign=True)
        texts = (escape(shorten(str(error[side]))) for side in ("prompt", "chosen", "rejected"))
        rows.append([str(place), escape(where), gap, *texts])
    header = ["", "set / subset / id", "gap", "prompt", "chosen", "rejected"]
    return (
        f"The pairs that the model gets most wrong (gap: chosen minus rejected reward).\n\n{_left_table(header, rows)}"
    )


def _left_table(header: list[str], rows: list[list[str]]) -> str:
    return markdown_table(header, rows, left=len(header))
