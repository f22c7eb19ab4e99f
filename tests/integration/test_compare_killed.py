"""A comparison that is killed at random moments again and again ends as if nothing had been: every cell once.

Every kill is a SIGKILL from outside, to the command itself or to one of its runs; the same command is given again.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from aplot_lightning.tuning.comparison import tasks_of
from aplot_lightning.tuning.grid import read_grid
from tests.processes import living, wait_until

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("APLOT_KILLS", 2))  # 10 and more for the whole measurement
MARK = "APLOT_TEST_MARK"
PATIENCE = 300.0  # seconds for what takes a few on a machine of its own
STEPS = 12


def study(laboratory: Any, folder: Path, name: str) -> Path:
    """As many short runs as there are kills, two at once, each with a checkpoint after every step."""
    content = {
        "comparison": name,
        "directory": str(folder / name),
        "configs": [laboratory.config],
        "overrides": {
            "data.ood": {"hard": str(laboratory.folder / "hard.jsonl")},
            "trainer.max_steps": STEPS,
            "trainer.val_check_interval": 4,
            "model.dropout": 0.1,
            "checkpoint_every_n_steps": 1,
        },
        "objectives": {name: str(ROOT / f"conf/objective/{name}.yaml") for name in ("bt", "aplot")},
        "seeds": list(range(max(1, KILLS // 2))),
        "workers": 2,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


class Runner:
    """Starts the command, and keeps all that it says."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.command = [sys.executable, "-m", "aplot_lightning", "compare", "--config", str(path)]
        self.mark = {MARK: str(folder)}
        self.environment = {**os.environ, **self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.environment.pop("APLOT_RUN_DIR", None)
        self.log = folder / "compare.log"

    def start(self) -> subprocess.Popen:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)

    def runs(self, parent: int) -> list[int]:
        """The processes of runs: those that the server forked, which the command itself has started."""
        parents = {process: _parent(process) for process in living(self.mark)}
        servers = {process for process, own in parents.items() if own == parent}
        return [process for process, own in parents.items() if own in servers]


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.stress
def test_a_comparison_that_is_killed_again_and_again_does_every_cell_once(laboratory: Any, tmp_path: Path) -> None:
    path = study(laboratory, tmp_path, "killed")
    tasks = tasks_of(read_grid([path], {}))
    runner, chance = Runner(path, tmp_path), random.Random(7)
    directory, kills = tmp_path / "killed", 0
    begun = 0
    while kills < KILLS:
        if all(task.state == "done" for task in tasks_of(read_grid([path], {}))):  # faster than the kills: from anew
            shutil.rmtree(directory)
            runner.log.write_text("")
            begun += 1
            assert begun < 10 + KILLS
        process = runner.start()
        try:
            wait_until(lambda: bool(runner.runs(process.pid)) or process.poll() is not None, PATIENCE)  # noqa: B023
            at = len(list(directory.rglob("last.ckpt")))
            if chance.random() < 0.7:  # in training, else in whatever comes before it
                wait_until(lambda: _newer(directory, at) or process.poll() is not None, PATIENCE)  # noqa: B023
            time.sleep(chance.uniform(0, 0.3))
            victims = runner.runs(process.pid) if kills % 2 else [process.pid]
            if not victims or process.poll() is not None:
                continue
            os.kill(chance.choice(victims), signal.SIGKILL)
            kills += 1
            code = process.wait(PATIENCE)
            assert code in ((1,) if kills % 2 == 0 else (-signal.SIGKILL,)), runner.log.read_text()[-2000:]
        finally:
            process.kill()
            process.wait()
        wait_until(lambda: not living(runner.mark), 10)
    assert runner.start().wait(PATIENCE) == 0, runner.log.read_text()[-2000:]
    _check(runner, laboratory, tmp_path, tasks)


def _newer(directory: Path, count: int) -> bool:
    """Whether a run has a checkpoint that there was not."""
    return len(list(directory.rglob("last.ckpt"))) > count


def _check(runner: Runner, laboratory: Any, folder: Path, tasks: list[Any]) -> None:
    said = runner.log.read_text()
    for task in tasks:
        assert len(re.findall(rf"\] {task.cell}: done in", said)) <= 1, said  # killed between its mark and its line: 0
        mark = json.loads((task.cell.run_dir / "cell.json").read_text())
        assert (mark["state"], mark["digest"]) == ("done", task.digest)
    assert [task.state for task in tasks_of(read_grid([folder / "killed.yaml"], {}))] == ["done"] * len(tasks)
    for task in tasks:  # against runs of the same words that nothing has disturbed
        alone = folder / "alone" / task.cell.objective / str(task.cell.seed)
        words = task.arguments()
        words[words.index("--run_dir") + 1] = str(alone)
        assert _fit(words) == 0
        states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (alone, task.cell.run_dir)]
        assert states[0]["global_step"] == states[1]["global_step"] == STEPS
        torch.testing.assert_close(states[0]["state_dict"], states[1]["state_dict"], rtol=0, atol=0)
        figures = [json.loads((run / "metrics.json").read_text()) for run in (alone, task.cell.run_dir)]
        assert {**figures[0], "train": None} == {**figures[1], "train": None}


def _fit(words: list[str]) -> int:
    from aplot_lightning.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aplot", *words])
        for variable in ("APLOT_RUN_DIR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(variable, "")
        torch.set_num_threads(1)
        return main(words)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's own, hidden from users
