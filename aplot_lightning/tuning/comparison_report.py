"""What a comparison leaves: report.md, table.csv with its statistics beside it, and plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from aplot_lightning.evaluation.report.tables import escape, markdown_table
from aplot_lightning.tuning.comparison import LOG, Task, duration
from aplot_lightning.tuning.grid import Grid, Setting

if TYPE_CHECKING:
    from aplot_lightning.evaluation.report.groups import FamilyTable

REPORT, TABLE, TABLES = "report.md", "table.csv", "tables"
AXES: dict[str, tuple[str, Any]] = {"label_noise": ("label noise", 0.0), "train_fraction": ("train fraction", 1.0)}


def write_comparison(grid: Grid, tasks: Sequence[Task]) -> str:
    """Writes everything into the comparison's directory and returns what stands on the terminal.

    Settings in which no run is done have no table; a run that failed is named with its reason.
    """
    tables = {setting: table for setting in grid.settings() if (table := _table(setting, tasks)) is not None}
    if not tables:
        return "no run is done: there is nothing to compare"
    folder = grid.directory
    _write_csv(folder, tables)
    parts = [f"# {escape(grid.comparison)}", _circumstances(grid, tasks)]
    parts += _failures(tasks)
    if len(tables) == 1:
        (table,) = tables.values()
        parts.append(table.markdown(_pictures(table, folder, folder / "plots")))
    else:
        parts += [*_robustness(grid, tables), "## Tables"]
        for setting, table in tables.items():
            page = _write_page(grid, setting, table)
            parts.append(f"### [{escape(title(setting))}]({page.relative_to(folder)})")
            parts.append("\n".join(f"- {escape(sentence)}" for sentence in table.sentences()))
    (folder / REPORT).write_text("\n\n".join(parts).rstrip() + "\n", encoding="utf-8")
    shown = [f"{title(setting)}\n" * (len(tables) > 1) + table.text() for setting, table in tables.items()]
    ways = f"report: {folder / REPORT}\nlearning curves of all runs: tensorboard --logdir {folder}"
    return "\n\n".join([*shown, ways])


def title(setting: Setting) -> str:
    """What a table is called: minilm, label noise 0.25."""
    noise = [f"label noise {setting.label_noise:g}"] if setting.label_noise else []
    fraction = [f"train fraction {setting.train_fraction:g}"] if setting.train_fraction != 1 else []
    return ", ".join([*([setting.backbone] if setting.backbone else []), *noise, *fraction]) or "all labels, all data"


def _table(setting: Setting, tasks: Sequence[Task]) -> FamilyTable | None:
    from aplot_lightning.evaluation.report.groups import compare_groups

    own = [task for task in tasks if task.cell.setting == setting]
    groups: dict[str, list[Path]] = {}
    for task in own:
        if task.state == "done":
            groups.setdefault(task.cell.objective, []).append(task.cell.run_dir)
    if not groups:
        return None
    order = dict.fromkeys(task.cell.objective for task in own)  # the baseline first, whichever run was done first
    table = compare_groups({name: groups[name] for name in order if name in groups})
    notes = [f"{task.cell.objective}: seed {task.cell.seed} failed: {task.reason}" for task in own if task.reason]
    return replace(table, notes=[*notes, *table.notes])


def _circumstances(grid: Grid, tasks: Sequence[Task]) -> str:
    """The command, what was run, and on what."""
    done = [task for task in tasks if task.state == "done"]
    record = json.loads((done[0].cell.run_dir / "run.json").read_text(encoding="utf-8"))
    hardware, versions = record["hardware"], record["versions"]
    axes = [_counted(len(values), *names) for names, values in _axes(grid).items()]
    seconds = sum(task.seconds for task in tasks)
    base = f"Base: {', '.join(map(str, grid.configs))}"
    if grid.overrides:
        base += f"; overrides: {json.dumps(grid.overrides)}"
    machine = f"{hardware['device']}, {_counted(hardware['threads'], 'thread', 'threads')} a run"
    machine += f", {_counted(grid.workers, 'run', 'runs')} at once"
    software = f"torch {versions['torch']}, transformers {versions['transformers']}"
    lines = [
        f"{len(done)} of {len(tasks)} runs are done: {' x '.join(axes)}. {base}.",
        f"{date.today()}; {machine}; {software}; {duration(seconds)} of runs in all.",
    ]
    command = f"    python -m aplot_lightning compare --config {' --config '.join(map(str, grid.files))}"
    curves = f"All runs in TensorBoard: `tensorboard --logdir {grid.directory}`"
    return "\n\n".join([command, *map(escape, lines), curves])


def _axes(grid: Grid) -> dict[tuple[str, str], Sequence[Any]]:
    """The axes by what one and what several of their values are called; of those beside the first two that vary."""
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


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _failures(tasks: Sequence[Task]) -> list[str]:
    """A section on the runs that failed, where there are any."""
    rows = [
        [escape(str(task.cell)), escape(task.reason), f"`{task.cell.run_dir / LOG}`"] for task in tasks if task.reason
    ]
    return ["## Failed", markdown_table(["run", "why", "log"], rows, left=3)] if rows else []


def _robustness(grid: Grid, tables: Mapping[Setting, FamilyTable]) -> Iterator[str]:
    """For each axis with several values a table of objectives by values, on ID and OOD mean."""
    from aplot_lightning.evaluation.report.groups import robustness_table

    for axis, (name, plain) in AXES.items():
        by_rest: dict[Setting, dict[float | str, FamilyTable]] = {}
        for setting, table in tables.items():
            by_rest.setdefault(replace(setting, **{axis: plain}), {})[getattr(setting, axis)] = table
        for rest, levels in by_rest.items():
            if len(levels) > 1:
                yield f"## {escape(name.capitalize())}: {escape(title(rest))}"
                yield from (robustness_table(levels, name, own).markdown() for own in _questions(levels))


def _questions(levels: Mapping[float | str, FamilyTable]) -> list[str]:
    """ID and OOD mean, as far as a level has them."""
    return list(dict.fromkeys(name for table in levels.values() for name in table.questions))


def _write_csv(folder: Path, tables: Mapping[Setting, FamilyTable]) -> None:
    """Writes table.csv and table_estimates.csv, of all settings, which stand in the first columns."""
    rows: dict[str, list[list[Any]]] = {}
    with TemporaryDirectory() as scratch:
        for setting, table in tables.items():
            own = [setting.backbone, setting.label_noise, setting.train_fraction]
            for path in table.write_csv(Path(scratch, TABLE)):
                with path.open(encoding="utf-8", newline="") as file:
                    header, *values = csv.reader(file)
                found = rows.setdefault(path.name, [["backbone", "label_noise", "train_fraction", *header]])
                found += [[*own, *row] for row in values]
    for name, found in rows.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(found)


def _pictures(table: FamilyTable, page: Path, folder: Path) -> list[str]:
    """Draws the table's plots; their paths as seen from the folder of a page."""
    return [path.relative_to(page).as_posix() for path in table.draw(folder)]


def _write_page(grid: Grid, setting: Setting, table: FamilyTable) -> Path:
    """The page of one of several settings, with its plots."""
    folder = grid.directory / TABLES / ("-".join(setting.parts) or "plain")
    folder.mkdir(parents=True, exist_ok=True)
    text = (
        f"# {escape(grid.comparison)}: {escape(title(setting))}\n\n{table.markdown(_pictures(table, folder, folder))}"
    )
    (folder / REPORT).write_text(text.rstrip() + "\n", encoding="utf-8")
    return folder / REPORT
