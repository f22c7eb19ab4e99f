"""aplot compare: objectives x seeds on the same data, run where they are not done yet, and their tables."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.tuning.grid import KEYS, Grid, read_grid

HELP = """usage: aplot compare --config studies/objectives.yaml [--workers 2] [--KEY VALUE ...]

objectives x seeds on the same data, with paired statistics

Runs what is not done yet, goes on with what was stopped, and writes tables and plots; the same command again does no
harm.

options:
  --config FILE              the comparison's YAML; several compose, later ones over earlier ones
  --KEY VALUE                any key of it, such as --workers 2, --seeds [0,1], --directory runs/mine
  --overrides.KEY VALUE      a key of fit for every run, such as --overrides.trainer.max_epochs 1
  --backbones.NAME VALUE     a folder or hub name in the place of that backbone's

keys of the YAML:
  comparison                 its name [the file's]
  directory                  where everything goes [runs/NAME]
  configs                    files as for fit's --config, before the objective's
  overrides                  keys of fit and their values, for every run
  objectives                 {name: file} or a list of files; the first is the baseline
  seeds                      a run for each, such as [0, 1, 2]
  backbones                  {name: folder or hub name}, or {name: {model.backbone: ..., other keys}} [the configs' own]
  label_noise                shares of the training pairs that are swapped [[0.0]]
  train_fraction             shares of the training comparisons that are trained on [[1.0]]
  workers                    runs at once [1]"""


def run(arguments: Sequence[str]) -> None:
    """Reads the command line and runs the comparison that it names.

    Raises:
        SystemExit: help was asked for.
        UserError: a word that is no option, or what `compare` raises.
        RunError: cells failed.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        raise SystemExit(0)
    files, options = _read(list(arguments))
    if not files:
        raise UserError("compare: --config is missing; name a comparison's YAML, such as studies/objectives.yaml")
    main(read_grid(files, options))


def _read(words: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """The YAML files and the dotted options of a command line."""
    files, options = [], {}
    while words:
        name, joined, value = words.pop(0).partition("=")
        if not re.fullmatch(r"--[A-Za-z].*", name):
            raise UserError(f"compare: {name!r} is no option; see aplot compare --help")
        if not joined:
            if not words:
                raise UserError(f"compare: {name} has no value; see aplot compare --help")
            value = words.pop(0)
        if name == "--config":
            files.append(Path(value))
            continue
        key = name.removeprefix("--")
        if key.partition(".")[0] not in KEYS:
            raise UserError(f"compare: there is no option {name}; its keys are {', '.join(KEYS)}; see --help")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[key] = value
    return files, options


def main(grid: Grid) -> None:
    """Runs what is missing of a comparison and writes its tables.

    Raises:
        UserError: a config or data file is not there, or another process runs this comparison.
        RunError: cells failed; the others are done, and the tables are written.
    """
    from aplot_lightning.training.run_directory import unlock_runs
    from aplot_lightning.tuning.comparison import Comparison, check_directory, check_words, tasks_of
    from aplot_lightning.tuning.comparison_report import write_comparison
    from aplot_lightning.tuning.launch import open_launcher

    tasks_of(grid)  # what is not there is said before a folder is made
    check_directory(grid)
    former = signal.signal(signal.SIGTERM, _terminated)
    try:
        tasks = tasks_of(grid)  # as they are now that no other process runs them
        print(_plan(grid, [task.state for task in tasks]), flush=True)
        if any(task.state != "done" for task in tasks):
            with open_launcher(preload=True) as launcher:
                check_words(tasks, grid.directory, launcher, grid.workers)
                Comparison(tasks, grid.workers, lambda line: print(line, flush=True)).run(launcher)
        print(f"\n{write_comparison(grid, tasks)}")
    except OSError as error:
        what = error.filename or grid.directory
        raise RunError(f"{what} could not be written ({error.strerror}); mend that and run compare again") from error
    finally:
        signal.signal(signal.SIGTERM, former)
        unlock_runs()
    failed = [task for task in tasks if task.reason is not None]
    if failed:
        names = ", ".join(str(task.cell) for task in failed)
        raise RunError(f"{len(failed)} of {len(tasks)} cells failed ({names}); their logs say why: run compare again")


def _plan(grid: Grid, states: Sequence[str]) -> str:
    """How many cells there are, and what is to be done with them."""
    counts = {"done": "done", "go on": "to go on with", "anew": "to run anew", "new": "to run"}
    told = ", ".join(f"{states.count(state)} {text}" for state, text in counts.items() if state in states)
    return f"{grid.comparison}: {len(states)} cells in {grid.directory}: {told}"


def _terminated(number: int, frame: object) -> None:
    """SIGTERM ends this process as an exception does, so that its runs save themselves first."""
    raise SystemExit(143)
