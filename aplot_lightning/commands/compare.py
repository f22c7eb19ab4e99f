"""aplot compare: objectives x seeds on the same data, run where they are not done yet, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aplot_lightning.errors import RunError
from aplot_lightning.tuning.grid import Grid, read_grid
from aplot_lightning.tuning.yaml_files import flat

CONFIGS_COMPOSE = True  # --config may be given several times


def main(
    config: list[str],
    comparison: str | None = None,
    directory: str | None = None,
    configs: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    objectives: dict[str, Any] | list[str] | None = None,
    seeds: list[int] | None = None,
    backbones: dict[str, Any] | None = None,
    label_noise: list[float] | float | None = None,
    train_fraction: list[float] | float | None = None,
    workers: int | None = None,
) -> None:
    """Trains every objective with every seed on the same data, and compares them with paired statistics.

    Runs what is not done yet, resumes what was stopped, and writes tables and plots. Running the command again is safe.

    Args:
        config: The comparison's YAML file. Several compose, later ones over earlier ones: --config a.yaml --config
            b.yaml. The other options replace the keys of the same names in it.
        comparison: Its name; by default the file's.
        directory: The folder of all results; by default runs/NAME.
        configs: Files as for fit's --config, before the objective's.
        overrides: Keys of fit for every run, added to the file's, such as --overrides.trainer.max_epochs 1.
        objectives: {name: file} or a list of files; the first is the baseline.
        seeds: One run for each, such as [0, 1, 2].
        backbones: {name: folder or hub name}, or {name: {model.backbone: ..., other keys}}; by default the configs'.
        label_noise: Shares of the training pairs whose labels are swapped; by default [0.0].
        train_fraction: Shares of the training comparisons to train on; by default [1.0].
        workers: Runs at a time; by default 1.

    Raises:
        UserError: a config or data file is missing, or another process runs this comparison.
        RunError: cells failed; the others are done, and the tables are written.
    """
    options = {
        "comparison": comparison,
        "directory": directory,
        "configs": configs,
        "objectives": objectives,
        "seeds": seeds,
        "label_noise": label_noise,
        "train_fraction": train_fraction,
        "workers": workers,
    }
    options = {name: value for name, value in options.items() if value is not None}
    options |= {f"overrides.{key}": value for key, value in flat(overrides or {}).items()}
    options |= {f"backbones.{key}": value for key, value in (backbones or {}).items()}
    run_comparison(read_grid([Path(file) for file in config], options))


def run_comparison(grid: Grid) -> None:
    """Runs what is missing of a comparison and writes its tables. Raises as `main` does."""
    from aplot_lightning.tuning.comparison import Comparison, check_cells, lock_directory, tasks_of
    from aplot_lightning.tuning.comparison_report import write_comparison
    from aplot_lightning.tuning.processes import Launcher
    from aplot_lightning.tuning.scheduler import exit_when_stopped

    tasks_of(grid)  # reports missing files before a folder is created
    lock = lock_directory(grid)
    try:
        with exit_when_stopped("stopped; its runs have saved themselves: run the same command to resume"):
            tasks = tasks_of(grid)  # as they are now that no other process runs them
            print(_plan(grid, [task.state for task in tasks]), flush=True)
            if any(task.state != "done" for task in tasks):
                with Launcher(preload=check_cells(tasks, grid.workers)) as launcher:
                    Comparison(tasks, grid.workers, lambda line: print(line, flush=True)).run(launcher)
            print(f"\n{write_comparison(grid, tasks)}")
    except OSError as error:
        path = error.filename or grid.directory
        raise RunError(f"{path} could not be written ({error.strerror}); fix that and run compare again") from error
    finally:
        lock.release()
    failed = [task for task in tasks if task.reason is not None]
    if failed:
        names = ", ".join(str(task.cell) for task in failed)
        raise RunError(f"{len(failed)} of {len(tasks)} cells failed ({names}); their logs say why: run compare again")


def _plan(grid: Grid, states: Sequence[str]) -> str:
    """How many cells there are, and what happens with them."""
    texts = {"done": "done", "resume": "to resume", "again": "to run again", "new": "to run"}
    counts = ", ".join(f"{states.count(state)} {text}" for state, text in texts.items() if state in states)
    return f"{grid.comparison}: {len(states)} cells in {grid.directory}: {counts}"
