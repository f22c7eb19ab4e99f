"""Runs the cells of a comparison that are not done yet, some at once, each as a `fit` of its own.

A cell's `cell.json` says what became of it, with the digest of what its result follows from: one that is done is left
alone, one with a checkpoint goes on from it, and one whose config or data have changed is run anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.exit_codes import USER_MISTAKE
from aplot_lightning.tuning.content import cell_digest
from aplot_lightning.tuning.grid import Cell, Grid
from aplot_lightning.tuning.launch import Child, Launcher
from aplot_lightning.tuning.machine import environments

MARK, LOG = "cell.json", "log.txt"
IN_A_ROW = 3  # failures after which a comparison stops
WAIT = 0.02  # seconds between two looks at the runs

State = Literal["done", "go on", "anew", "new"]


@dataclass
class Task:
    """A cell, and what is known of its run.

    Attributes:
        cell: what is run.
        digest: of what its result follows from.
        state: what is to be done with it, or that it is done.
        seconds: that its processes took so far.
        reason: the last line of its log where it failed.
    """

    cell: Cell
    digest: str
    state: State
    seconds: float = 0.0
    reason: str | None = None

    @staticmethod
    def of(cell: Cell) -> Task:
        """A cell as its run directory tells it. Raises UserError for a config or data that there are not."""
        digest = cell_digest(cell)
        mark = _read_mark(cell.run_dir)
        begun = any(cell.run_dir.glob("checkpoints/*.ckpt"))
        if mark.get("digest") != digest:
            return Task(cell, digest, "anew" if begun else "new")
        seconds = float(mark.get("seconds", 0.0))
        if mark.get("state") == "done" and (cell.run_dir / "metrics.json").is_file():
            return Task(cell, digest, "done", seconds)
        last = (cell.run_dir / "checkpoints" / "last.ckpt").is_file()
        return Task(cell, digest, "go on" if last else "anew" if begun else "new", seconds)

    def words(self) -> list[str]:
        """What stands behind `python -m aplot_lightning`."""
        options = {
            "run_dir": str(self.cell.run_dir),
            "seed_everything": self.cell.seed,
            "data.watch_test_sets": False,  # they are evaluated once, at the end
            **({"ckpt_path": "last"} if self.state == "go on" else {}),
            **({"overwrite": True} if self.state == "anew" else {}),
        }
        return [*fit_words(self.cell), *_options(options)]

    def mark(self, state: Literal["running", "done", "failed"]) -> None:
        """Writes the run directory's `cell.json`, which is whole at any time."""
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
        part = cell.run_dir / f".{MARK}.part"
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, cell.run_dir / MARK)


def fit_words(cell: Cell) -> list[str]:
    """A cell's `fit` with its configs and overrides, without what belongs to one run of it."""
    return ["fit", *(word for path in cell.configs for word in ("--config", str(path))), *_options(cell.overrides)]


def _options(values: dict[str, Any]) -> list[str]:
    return [
        word
        for key, value in values.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def _read_mark(run_dir: Path) -> dict[str, Any]:
    try:
        content = json.loads((run_dir / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass
class Worker:
    """One of the runs at once, and the devices that it has to itself."""

    environment: dict[str, str]
    task: Task | None = None
    child: Child | None = None
    started: float = 0.0


@dataclass
class Comparison:
    """Carries a grid's tasks out.

    Attributes:
        tasks: of all cells.
        workers: runs at once.
        say: takes a line for whoever watches.
        devices: CUDA devices of each run at once; by default all that there are, spread evenly.
    """

    tasks: Sequence[Task]
    workers: int
    say: Callable[[str], None]
    devices: Sequence[int | list[int]] | None = None
    _ended: list[float] = field(default_factory=list)
    _in_a_row: int = 0

    def run(self, launcher: Launcher) -> None:
        """Runs what is not done; cells that failed have a reason then.

        Raises:
            RunError: three cells in a row failed. The others that ran have saved themselves.
        """
        waiting = [task for task in self.tasks if task.state != "done"]
        workers = [Worker(each) for each in environments(min(self.workers, len(waiting)), self.devices)]
        left = len(waiting)
        try:
            while left:
                for worker in workers:
                    if worker.task is None and waiting:
                        self._start(worker, waiting.pop(0), launcher)
                    elif worker.child is not None and (code := worker.child.poll()) is not None:
                        left -= 1
                        self._end(worker, code, left)
                time.sleep(WAIT)
        finally:
            _stop([worker for worker in workers if worker.child is not None])

    def _start(self, worker: Worker, task: Task, launcher: Launcher) -> None:
        run_dir = task.cell.run_dir
        if task.state in ("anew", "new"):
            for name in (LOG, "metrics.json"):
                (run_dir / name).unlink(missing_ok=True)
            task.seconds = 0.0
        if task.state == "anew":
            self.say(f"{task.cell}: {run_dir} holds a run of another config or data; it is run anew")
            # before the mark is this config's: nothing may go on from what the other one has left
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        task.mark("running")
        worker.task, worker.started = task, time.monotonic()
        worker.child = launcher.start(task.words(), log=run_dir / LOG, environment=worker.environment)

    def _end(self, worker: Worker, code: int, left: int) -> None:
        """Notes what became of a run."""
        task = worker.task
        assert task is not None
        worker.task = worker.child = None
        seconds = time.monotonic() - worker.started
        task.seconds += seconds
        if code == 0 and not (task.cell.run_dir / "metrics.json").is_file():
            task.reason = "it ended without metrics.json"
        elif code != 0:
            task.reason = _reason(code, task.cell.run_dir / LOG)
        if task.reason is None:
            task.state, self._in_a_row = "done", 0
            self._ended.append(seconds)
            task.mark("done")
            self._progress(task, f"done in {duration(seconds)}", left)
            return
        task.mark("failed")
        self._in_a_row += 1
        self._progress(task, f"failed: {task.reason} (log: {task.cell.run_dir / LOG})", left)
        if self._in_a_row == IN_A_ROW:
            raise RunError(
                f"{IN_A_ROW} cells in a row failed, the last of them, {task.cell}, with: {task.reason} (log: "
                f"{task.cell.run_dir / LOG}); mend that and run compare again to go on"
            )

    def _progress(self, task: Task, what: str, left: int) -> None:
        line = f"[{len(self.tasks) - left}/{len(self.tasks)}] {task.cell}: {what}"
        if left and self._ended:
            mean = sum(self._ended) / len(self._ended)
            line += f"; about {duration(mean * left / min(self.workers, left))} left"
        self.say(line)


def _stop(workers: Sequence[Worker]) -> None:
    """Ends what still runs, all at the same time; each saves a checkpoint that it goes on from, or has just ended."""

    def stop(worker: Worker) -> None:
        assert worker.child is not None
        assert worker.task is not None
        if worker.child.stop() == 0 and (worker.task.cell.run_dir / "metrics.json").is_file():
            worker.task.seconds += time.monotonic() - worker.started
            worker.task.mark("done")

    if workers:
        with ThreadPoolExecutor(len(workers)) as pool:
            list(pool.map(stop, workers))


def _reason(code: int, log: Path) -> str:
    """Why a run failed, as the last line of its log says."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
    if code < 0:
        return f"killed by signal {-code}"
    return re.sub(r"^aplot: ", "", last)[:500]


def duration(seconds: float) -> str:
    """A time as people say it: 42 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def check_words(tasks: Sequence[Task], folder: Path, launcher: Launcher, workers: int) -> None:
    """Has `fit`'s own parser read what is about to run, so that a wrong key is said before the first run.

    Every objective is read once, and every setting. Raises UserError with what `fit` says.
    """
    begun = [task for task in tasks if task.state in ("new", "anew")]
    # one cell for each objective and for each setting: keys do not depend on what else they are combined with
    cells = list({key: task.cell for task in begun for key in (task.cell.objective, task.cell.setting)}.values())
    waiting = list(dict.fromkeys(cells))
    running: dict[int, tuple[Cell, Child]] = {}
    try:
        while waiting or running:
            for place in range(workers):
                if place not in running and waiting:
                    log = folder / f"check-{place}.log"
                    log.unlink(missing_ok=True)
                    words = [*fit_words(waiting[0]), "--print_config"]
                    running[place] = waiting.pop(0), launcher.start(words, log=log)
                elif place in running and (code := running[place][1].poll()) is not None:
                    cell, child = running.pop(place)
                    why = _reason(code, child.log)
                    child.log.unlink(missing_ok=True)
                    if code == USER_MISTAKE:
                        raise UserError(f"{cell.objective}: {why}")
                    if code != 0:
                        raise RunError(f"{cell.objective}: its config could not be read: {why}")
            time.sleep(WAIT)
    finally:
        for _, child in running.values():
            child.stop()
            child.log.unlink(missing_ok=True)


def tasks_of(grid: Grid) -> list[Task]:
    """A task for each cell. Raises UserError for a config or data that there are not."""
    return [Task.of(cell) for cell in grid.cells()]


def check_directory(grid: Grid) -> None:
    """Takes the comparison's directory for this process. Raises UserError where another one has it."""
    from aplot_lightning.training.run_directory import lock_run

    try:
        lock_run(grid.directory)
    except UserError as error:
        said = str(error).replace("run_dir", "directory").replace("another run", "another compare")
        raise UserError(said) from None
