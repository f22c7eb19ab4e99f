"""Which cells run, go on, run anew or are left alone; what becomes of failures; threads and devices of each."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.tuning.comparison import Comparison, Task, check_cells, tasks_of
from aplot_lightning.tuning.grid import Grid, read_grid
from aplot_lightning.tuning.processes import Launcher
from tests.processes import wait_until

TINY = [sys.executable, str(Path(__file__).with_name("tiny_fit.py"))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("model: {}\n")
    return tmp_path


def grid(objectives: Mapping[str, str], **changes: Any) -> Grid:
    for name, how in objectives.items():
        Path(f"{name}.yaml").write_text(f"tiny: {how}\n")
    names = {name: f"{name}.yaml" for name in objectives}
    Path("x.yaml").write_text(
        yaml.safe_dump({"configs": ["base.yaml"], "objectives": names, "seeds": [0], **changes}, sort_keys=False)
    )
    return read_grid([Path("x.yaml")], {})


def run(comparison: Grid) -> tuple[list[Task], list[str]]:
    """Runs what is missing; all tasks and what was said."""
    tasks, said = tasks_of(comparison), []
    with Launcher(program=TINY) as launcher:
        Comparison(tasks, comparison.workers, said.append).run(launcher)
    return tasks, said


def starts(task: Task) -> list[list[str]]:
    """The command lines of all processes that a cell's run took, from its checkpoint."""
    return json.loads((task.cell.run_dir / "checkpoints" / "last.ckpt").read_text())


def states(comparison: Grid) -> list[str]:
    return [task.state for task in tasks_of(comparison)]


def test_a_cell_is_what_fit_would_be_told_and_is_done_once(folder: Path) -> None:
    comparison = grid({"a": "ok", "b": "ok"}, seeds=[3], overrides={"x.y": [1], "x.z": "text"}, workers=2)
    tasks, said = run(comparison)
    assert [task.state for task in tasks] == ["done", "done"]
    (words,) = starts(tasks[1])
    assert words == [
        *("fit", "--config", "base.yaml", "--config", "b.yaml", "--x.y", "[1]", "--x.z", "text"),
        *("--run_dir", "runs/x/b/seed3", "--seed_everything", "3", "--data.watch_test_sets", "false"),
    ]
    mark = json.loads((tasks[1].cell.run_dir / "cell.json").read_text())
    assert (mark["state"], mark["objective"], mark["seed"], mark["digest"]) == ("done", "b", 3, tasks[1].digest)
    assert sorted(line.split()[1] for line in said) == ["a", "b"]
    assert [line.split()[0] for line in said] == ["[1/2]", "[2/2]"]
    assert "left" in said[0]
    assert "left" not in said[1]
    before = (tasks[1].cell.run_dir / "cell.json").stat().st_mtime_ns
    again, said = run(comparison)
    assert said == []
    assert (again[1].cell.run_dir / "cell.json").stat().st_mtime_ns == before


def test_another_config_runs_anew_and_a_longer_list_only_what_is_new(folder: Path) -> None:
    run(grid({"a": "ok", "b": "ok"}))
    wider = grid({"a": "ok", "b": "ok", "c": "ok"}, seeds=[0, 1])
    assert states(wider) == ["done", "done", "new", "new", "new", "new"]
    Path("base.yaml").write_text("# only a comment\nmodel: {}\n")
    assert states(wider)[:2] == ["done", "done"]
    changed = grid({"a": "ok", "b": "ok"}, overrides={"trainer.max_epochs": 2})
    assert states(changed) == ["again", "again"]
    tasks, said = run(changed)
    assert "a seed 0: runs/x/a/seed0 holds a run of another config or data; it is run again" in said
    (words,) = starts(tasks[0])
    assert words[-2:] == ["--overwrite", "true"]
    assert states(changed) == ["done", "done"]


def test_a_run_without_our_mark_or_without_its_figures_is_not_taken_for_done(folder: Path) -> None:
    comparison = grid({"a": "ok", "b": "ok", "c": "ok"})
    tasks, _ = run(comparison)
    (tasks[0].cell.run_dir / "cell.json").write_text("{ torn")
    (tasks[1].cell.run_dir / "metrics.json").unlink()
    assert states(comparison) == ["again", "resume", "done"]
    (tasks[1].cell.run_dir / "checkpoints" / "last.ckpt").unlink()
    assert states(comparison) == ["again", "new", "done"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("fail", "it is meant to fail"),
        ("refuse", "it is meant to refuse"),
        ("killed", "killed by signal 9"),
        ("silent", "it ended without metrics.json"),
    ],
)
def test_a_failure_is_recorded_and_the_others_go_on(folder: Path, how: str, reason: str) -> None:
    tasks, said = run(grid({"a": "ok", "b": how, "c": "ok"}))
    assert [task.reason for task in tasks] == [None, reason, None]
    mark = json.loads((tasks[1].cell.run_dir / "cell.json").read_text())
    assert (mark["state"], mark["reason"]) == ("failed", reason)
    assert f"[2/3] b seed 0: failed: {reason} (log: runs/x/b/seed0/log.txt)" in said[1]
    # the next time it goes on, and may come to its end
    tasks, _ = run(grid({"a": "ok", "b": how, "c": "ok"}))
    assert [words[-2:] == ["--ckpt_path", "last"] for words in starts(tasks[1])] == [False, True]


def test_three_failures_in_a_row_stop_it_and_what_runs_saves_itself(folder: Path) -> None:
    comparison = grid(
        {"slow": "slow", "a": "fail", "b": "ok", "c": "fail", "d": "fail", "e": "fail", "f": "ok"}, workers=2
    )
    tasks, said = tasks_of(comparison), []
    with Launcher(program=TINY) as launcher, pytest.raises(RunError) as error:
        Comparison(tasks, comparison.workers, said.append).run(launcher)
    assert str(error.value) == (
        "3 cells in a row failed, the last of them, e seed 0, with: it is meant to fail (log: runs/x/e/seed0/log.txt); "
        "fix that and run the same command again to resume"
    )
    assert len(said) == 5
    assert states(comparison) == ["resume", "resume", "done", "resume", "resume", "resume", "new"]


def test_an_interrupted_comparison_goes_on(folder: Path) -> None:
    comparison = grid({"a": "slow", "c": "late", "b": "ok"}, workers=3)
    tasks = tasks_of(comparison)

    class Asked(Exception):
        pass

    def interrupt(line: str) -> None:
        wait_until(lambda: len(list(folder.rglob("ready"))) == 2)
        raise Asked

    with Launcher(program=TINY) as launcher, pytest.raises(Asked):
        Comparison(tasks, 3, interrupt).run(launcher)
    assert states(comparison) == ["resume", "done", "done"]  # one was ready when it was asked to stop
    tasks, _ = run(comparison)
    assert [len(starts(task)) for task in tasks] == [2, 1, 1]
    assert states(comparison) == ["done", "done", "done"]


def test_a_wrong_key_is_said_before_the_first_run(folder: Path) -> None:
    """Of every objective and setting one cell is read by fit itself, those that are done are not."""
    wrong = grid({"a": "ok", "b": "ok"}, overrides={"trainer.max_epoch": 1})
    with pytest.raises(UserError, match=r"^a: .*trainer.max_epoch") as error:
        check_cells(tasks_of(wrong)[:1], 1)
    assert "\n" not in str(error.value)
    done = tasks_of(wrong)
    for task in done:
        task.state = "done"
    assert check_cells(done, 1)


def test_a_worker_has_its_own_threads_and_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    tasks, _ = run(grid({"a": "ok", "b": "ok"}, workers=2))
    logs = [(task.cell.run_dir / "log.txt").read_text().strip() for task in tasks]
    assert logs == ["tiny 1 4", "tiny 1 5"]
