"""The files of a finished comparison: report.md, table.csv with its statistics beside it, and plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.evaluation.report.rendering import render
from aplot_lightning.evaluation.report.tables import Table, count, duration
from aplot_lightning.files import write_text
from aplot_lightning.tuning.comparison import LOG, Task
from aplot_lightning.tuning.grid import Grid, Setting

if TYPE_CHECKING:
    from aplot_lightning.evaluation.report import GroupResults

REPORT, TABLE, TABLES = "report.md", "table.csv", "tables"
AXES: dict[str, tuple[str, Any]] = {"label_noise": ("label noise", 0.0), "train_fraction": ("train fraction", 1.0)}


def write_comparison(grid: Grid, tasks: Sequence[Task]) -> str:
    """Writes everything into the comparison's directory and returns the text for the terminal.

    Settings without a finished run have no table. A run that failed is named with its reason.
    """
    from aplot_lightning.evaluation.report import groups_text, sentences

    found = {setting: results for setting in grid.settings() if (results := _results(setting, tasks)) is not None}
    if not found:
        return "no run is done: there is nothing to compare"
    folder = grid.directory
    _write_csv(folder, found)
    page, tables = "", []
    if len(found) == 1:
        (results,) = found.values()
        page = _page(results, folder, folder / "plots")
    else:
        for setting, results in found.items():
            path = _write_page(grid, setting, results)
            tables.append((title(setting), path.relative_to(folder).as_posix(), sentences(results)))
    text = render(
        "comparison",
        name=grid.comparison,
        command=f"python -m aplot_lightning compare --config {' --config '.join(map(str, grid.files))}",
        circumstances=_circumstances(grid, tasks),
        directory=grid.directory,
        failed=_failed(tasks),
        robustness=_robustness(found),
        tables=tables,
        page=page,
    )
    write_text(folder / REPORT, text)
    shown = [f"{title(setting)}\n" * (len(found) > 1) + groups_text(results) for setting, results in found.items()]
    ways = f"report: {folder / REPORT}\nlearning curves of all runs: tensorboard --logdir {folder}"
    return "\n\n".join([*shown, ways])


def title(setting: Setting) -> str:
    """A setting's title: minilm, label noise 0.25."""
    noise = [f"label noise {setting.label_noise:g}"] if setting.label_noise else []
    fraction = [f"train fraction {setting.train_fraction:g}"] if setting.train_fraction != 1 else []
    return ", ".join([*([setting.backbone] if setting.backbone else []), *noise, *fraction]) or "all labels, all data"


def _results(setting: Setting, tasks: Sequence[Task]) -> GroupResults | None:
    """The results of a setting's objectives: the baseline, then the others by name; None if no run is done."""
    from aplot_lightning.evaluation.report import compare_groups

    own = [task for task in tasks if task.cell.setting == setting]
    groups: dict[str, list[Path]] = {}
    for task in own:
        if task.state == "done":
            groups.setdefault(task.cell.objective, []).append(task.cell.run_dir)
    if not groups:
        return None
    baseline, *others = dict.fromkeys(task.cell.objective for task in own)
    results = compare_groups({name: groups[name] for name in (baseline, *sorted(others)) if name in groups})
    notes = [f"{task.cell.objective}: seed {task.cell.seed} failed: {task.reason}" for task in own if task.reason]
    return replace(results, notes=[*notes, *results.notes])


def _circumstances(grid: Grid, tasks: Sequence[Task]) -> list[str]:
    """What was run, and on what machine."""
    done = [task for task in tasks if task.state == "done"]
    record = json.loads((done[0].cell.run_dir / "run.json").read_text(encoding="utf-8"))
    hardware, versions = record["hardware"], record["versions"]
    axes = [count(len(values), *names) for names, values in _axes(grid).items()]
    base = f"Base: {', '.join(map(str, grid.configs))}"
    if grid.overrides:
        base += f"; overrides: {json.dumps(grid.overrides)}"
    machine = (
        f"{hardware['device']}, {count(hardware['threads'], 'thread')} a run, {count(grid.workers, 'run')} at once"
    )
    software = f"torch {versions['torch']}, transformers {versions['transformers']}"
    seconds = sum(task.seconds for task in tasks)
    return [
        f"{len(done)} of {len(tasks)} runs are done: {' x '.join(axes)}. {base}.",
        f"{date.today()}; {machine}; {software}; {duration(seconds)} of runs in all.",
    ]


def _axes(grid: Grid) -> dict[tuple[str, str], Sequence[Any]]:
    """The axes' values by their name for one and for several: objectives, seeds, and the others that vary."""
    more: dict[tuple[str, str], Sequence[Any]] = {
        ("backbone", "backbones"): list(grid.backbones),
        ("level of label noise", "levels of label noise"): grid.label_noise,
        ("training fraction", "training fractions"): grid.train_fraction,
    }
    always: dict[tuple[str, str], Sequence[Any]] = {
        ("objective", "objectives"): list(grid.objectives),
        ("seed", "seeds"): grid.seeds,
    }
    return always | {names: values for names, values in more.items() if len(values) > 1}


def _failed(tasks: Sequence[Task]) -> Table:
    rows = [[str(task.cell), task.reason, str(task.cell.run_dir / LOG)] for task in tasks if task.reason]
    return Table(["run", "why", "log"], rows, left=3)


def _robustness(found: Mapping[Setting, GroupResults]) -> dict[str, list[Table]]:
    """For each axis with several values, by title, a table of objectives by values on ID and on OOD mean."""
    from aplot_lightning.evaluation.report import robustness_table

    tables = {}
    for axis, (name, plain) in AXES.items():
        by_rest: dict[Setting, dict[float | str, GroupResults]] = {}
        for setting, results in found.items():
            by_rest.setdefault(replace(setting, **{axis: plain}), {})[getattr(setting, axis)] = results
        for rest, levels in by_rest.items():
            if len(levels) > 1:
                questions = dict.fromkeys(question for results in levels.values() for question in results.questions)
                own = [robustness_table(levels, name, question).table() for question in questions]
                tables[f"{name.capitalize()}: {title(rest)}"] = own
    return tables


def _write_csv(folder: Path, found: Mapping[Setting, GroupResults]) -> None:
    """Writes table.csv and table_estimates.csv of all settings, which are the first columns."""
    import pandas as pd

    from aplot_lightning.evaluation.report import estimates_frame, values_frame

    for name, frame_of in {TABLE: values_frame, "table_estimates.csv": estimates_frame}.items():
        frames = []
        for setting, results in found.items():
            frame = frame_of(results)
            for column in ("train_fraction", "label_noise", "backbone"):
                frame.insert(0, column, getattr(setting, column))
            frames.append(frame)
        pd.concat(frames).to_csv(folder / name, index=False, lineterminator="\n")


def _page(results: GroupResults, folder: Path, plots: Path) -> str:
    """The results as Markdown for a file in `folder`, with the plots that it draws into `plots`."""
    from aplot_lightning.evaluation.report import draw_groups, groups_page

    return groups_page(results, [path.relative_to(folder).as_posix() for path in draw_groups(results, plots)])


def _write_page(grid: Grid, setting: Setting, results: GroupResults) -> Path:
    """Writes the page of one of several settings, with its plots; returns its path."""
    folder = grid.directory / TABLES / ("-".join(setting.parts) or "plain")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{grid.comparison}: {title(setting)}"
    write_text(folder / REPORT, render("setting", name=name, page=_page(results, folder, folder)))
    return folder / REPORT
