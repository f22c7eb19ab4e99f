"""Runs the cells of a comparison that are not done yet, each as a `fit` of its own.

A cell's `cell.json` records its state and the digest of what its result depends on. A cell that is done is left alone,
one with a checkpoint resumes from it, and one whose config or data have changed is run again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.evaluation.report.tables import duration
from aplot_lightning.files import try_lock, write_text
from aplot_lightning.tuning.config_digest import cell_digest
from aplot_lightning.tuning.fit_config import config_arguments, fit_configs, is_single_process, option_arguments
from aplot_lightning.tuning.grid import Cell, Grid
from aplot_lightning.tuning.machine import environments
from aplot_lightning.tuning.processes import Launcher
from aplot_lightning.tuning.scheduler import Job, run_jobs

MARK, LOG = "cell.json", "log.txt"
MAX_FAILURES = 3  # in a row stop a comparison

State = Literal["done", "resume", "again", "new"]


class CellsFailedError(RunError):
    """Several cells in a row failed."""


@dataclass
class Task:
    """A cell and the state of its run.

    Attributes:
        cell: what is run.
        digest: of what its result depends on.
        state: what to do with it, or that it is done.
        seconds: that its processes took so far.
        reason: the last line of its log if it failed.
    """

    cell: Cell
    digest: str
    state: State
    seconds: float = 0.0
    reason: str | None = None

    @staticmethod
    def of(cell: Cell) -> Task:
        """The task of a cell, from its run directory. Raises UserError for a missing config or data file."""
        digest = cell_digest(cell)
        mark = _read_mark(cell.run_dir)
        begun = any(cell.run_dir.glob("checkpoints/*.ckpt"))
        if mark.get("digest") != digest:
            return Task(cell, digest, "again" if begun else "new")
        seconds = float(mark.get("seconds", 0.0))
        if mark.get("state") == "done" and (cell.run_dir / "metrics.json").is_file():
            return Task(cell, digest, "done", seconds)
        last = (cell.run_dir / "checkpoints" / "last.ckpt").is_file()
        return Task(cell, digest, "resume" if last else "again" if begun else "new", seconds)

    @property
    def log(self) -> Path:
        return self.cell.run_dir / LOG

    def arguments(self) -> list[str]:
        """What follows `python -m aplot_lightning`."""
        options = {
            "run_dir": str(self.cell.run_dir),
            "seed_everything": self.cell.seed,
            "data.watch_test_sets": False,  # they are evaluated once, at the end
            **({"ckpt_path": "last"} if self.state == "resume" else {}),
            **({"overwrite": True} if self.state == "again" else {}),
        }
        return ["fit", *cell_arguments(self.cell), *option_arguments(options)]

    def mark(self, state: Literal["running", "done", "failed"]) -> None:
        """Writes the run directory's `cell.json`."""
        cell = self.cell
        content = {
            "state": state,
            "digest": self.digest,
            "objective": cell.objective,
            "seed": cell.seed,
            "backbone": cell.setting.backbone,
            "label_noise": cell.setting.label_noise,
            "train_fraction": cell.setting.train_fraction,
            "seconds": round(self.seconds, 1),
            **({"reason": self.reason} if self.reason else {}),
        }
        cell.run_dir.mkdir(parents=True, exist_ok=True)
        write_text(cell.run_dir / MARK, json.dumps(content, indent=2, ensure_ascii=False) + "\n", durable=True)


def cell_arguments(cell: Cell) -> list[str]:
    """A cell's configs and overrides as arguments of `fit`, without what belongs to one run of it."""
    return [*config_arguments(cell.configs), *option_arguments(cell.overrides)]


def _read_mark(run_dir: Path) -> dict[str, Any]:
    try:
        content = json.loads((run_dir / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Comparison:
    """Runs the tasks that are not done.

    Args:
        tasks: of all cells.
        workers: runs at a time.
        log: takes one line for each cell that ended.
        devices: CUDA devices of each of the runs at a time; by default all devices, spread evenly.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        workers: int,
        log: Callable[[str], None],
        devices: Sequence[int | list[int]] | None = None,
    ) -> None:
        self.tasks, self.workers, self.log, self.devices = tasks, workers, log, devices
        self._waiting: list[Task] = []
        self._left = 0
        self._durations: list[float] = []
        self._failures = 0  # in a row

    def run(self, launcher: Launcher) -> None:
        """Runs what is not done. Cells that failed have a `reason` afterwards.

        Raises:
            CellsFailedError: three cells in a row failed. The others have saved themselves.
            Stopped: this process was asked to stop. What ran has saved itself.
        """
        self._waiting = [task for task in self.tasks if task.state != "done"]
        self._left = len(self._waiting)
        run_jobs(self, launcher, environments(min(self.workers, self._left), self.devices))

    def next_job(self) -> Job[Task] | None:
        if not self._waiting:
            return None
        task = self._waiting.pop(0)
        run_dir = task.cell.run_dir
        if task.state in ("again", "new"):
            for name in (LOG, "metrics.json"):
                (run_dir / name).unlink(missing_ok=True)
            task.seconds = 0.0
        if task.state == "again":
            self.log(f"{task.cell}: {run_dir} holds a run of another config or data; it is run again")
            # before the mark is this config's: nothing may resume from what the other one has left
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        task.mark("running")
        return Job(task, task.arguments(), task.log)

    def pulse(self) -> bool:
        return False

    def ended(self, job: Job[Task], code: int, seconds: float) -> None:
        task = job.item
        self._left -= 1
        task.seconds += seconds
        task.reason = _reason(task, code)
        if task.reason is None:
            task.state, self._failures = "done", 0
            self._durations.append(seconds)
            task.mark("done")
            self._log_end(task, f"done in {duration(seconds)}")
            return
        task.mark("failed")
        self._failures += 1
        self._log_end(task, f"failed: {task.reason} (log: {task.log})")
        if self._failures == MAX_FAILURES:
            raise CellsFailedError(
                f"{MAX_FAILURES} cells in a row failed, the last of them, {task.cell}, with: {task.reason} (log: "
                f"{task.log}); fix that and run the same command again to resume"
            )

    def stopped(self, job: Job[Task], code: int, seconds: float) -> None:
        """Each stopped run has saved a checkpoint to resume from, unless it had just ended."""
        task = job.item
        if code == 0 and (task.cell.run_dir / "metrics.json").is_file():
            task.seconds += seconds
            task.mark("done")

    def _log_end(self, task: Task, what: str) -> None:
        line = f"[{len(self.tasks) - self._left}/{len(self.tasks)}] {task.cell}: {what}"
        if self._left and self._durations:
            mean = sum(self._durations) / len(self._durations)
            line += f"; about {duration(mean * self._left / min(self.workers, self._left))} left"
        self.log(line)


def _reason(task: Task, code: int) -> str | None:
    """Why a run failed; None if it did not."""
    if code == 0:
        return None if (task.cell.run_dir / "metrics.json").is_file() else "it ended without metrics.json"
    if code < 0:
        return f"killed by signal {-code}"
    lines = task.log.read_text(encoding="utf-8", errors="replace").split("\n") if task.log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
    return re.sub(r"^aplot: ", "", last)[:500]


def check_cells(tasks: Sequence[Task], workers: int) -> bool:
    """Has `fit`'s own parser read what is about to run, so that a wrong key is reported before the first run.

    Every objective is read once, and every setting: keys do not depend on what else they are combined with.

    Returns:
        Whether every run is a single process.

    Raises:
        UserError: what `fit` refuses, after the objective's name.
    """
    due = [task.cell for task in tasks if task.state != "done"]
    first = {key: cell for cell in reversed(due) for key in (cell.objective, cell.setting)}
    cells = [cell for cell in due if cell in (first[cell.objective], first[cell.setting])]
    configs = fit_configs([cell_arguments(cell) for cell in cells], workers)
    single = True
    for cell in cells:
        try:
            single &= is_single_process(next(configs))
        except UserError as error:
            raise UserError(f"{cell.objective}: {error}") from error
    return single


def tasks_of(grid: Grid) -> list[Task]:
    """A task for each cell. Raises UserError for a missing config or data file."""
    return [Task.of(cell) for cell in grid.cells()]


def lock_directory(grid: Grid) -> Any:
    """Locks the comparison's directory for this process; returns the lock to release.

    Raises:
        UserError: the directory cannot be written, or another process runs this comparison.
    """
    try:
        grid.directory.mkdir(parents=True, exist_ok=True)
        lock = try_lock(grid.directory / ".lock")
    except OSError as error:
        raise UserError(
            f"directory: {grid.directory} cannot be written ({error.strerror}); name another --directory"
        ) from error
    if lock is None:
        raise UserError(
            f"directory: {grid.directory} is in use by another compare; wait for its end or name another --directory"
        )
    return lock
