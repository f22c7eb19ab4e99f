"""Trials that are run, fail, are killed and are stopped, with tiny programs in the place of fit."""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from aplot_lightning.errors import RunError
from aplot_lightning.tuning.machine import threads_of
from aplot_lightning.tuning.processes import Child, Launcher
from aplot_lightning.tuning.scheduler import Stopped
from aplot_lightning.tuning.study import read_study
from aplot_lightning.tuning.study_runner import StudyRunner
from aplot_lightning.tuning.trial import TrialRuns
from aplot_lightning.tuning.trial_queue import FAILURE, MAX_DEATHS, TrialQueue
from tests.tuning.studies import study_file

TRIAL = Path(__file__).with_name("tiny_trial.py")
POINTS = {"tiny.x": {"categorical": [0.1, 0.2, 0.3, 0.4]}}


class Recorder(Launcher):
    """Remembers what was started, and whether the children live."""

    def __init__(self) -> None:
        super().__init__(program=[sys.executable, "-S", str(TRIAL)])
        self.children: list[Child] = []
        self.variables: list[dict[str, str]] = []

    def start(self, arguments: Any, *, log: Path, environment: Any = None) -> Any:
        self.variables.append(dict(environment))
        child = super().start(arguments, log=log, environment=environment)
        self.children.append(child)
        return child


@pytest.fixture
def launcher() -> Iterator[Recorder]:
    with Recorder() as opened:
        yield opened


def runner(folder: Path, **keys: Any) -> tuple[StudyRunner, list[str]]:
    config = read_study(study_file(folder, **{"sampler": "grid", "space": POINTS, **keys}))
    lines: list[str] = []
    return StudyRunner(TrialQueue(config, {}), TrialRuns(config, {}), lines.append), lines


def test_every_trial_is_run_with_its_values_and_told(tmp_path: Path, launcher: Recorder) -> None:
    crew, lines = runner(tmp_path, workers=2, overrides={"data.batch_size": 8})
    crew.run(launcher)
    trials = crew.queue.trials()
    assert [trial.params["tiny.x"] for trial in trials] == [0.1, 0.2, 0.3, 0.4]
    for trial in trials:
        assert trial.value == 1 - (trial.params["tiny.x"] - 0.3) ** 2
        written = yaml.safe_load((tmp_path / "study" / "trials" / f"{trial.number:04}" / "trial.yaml").read_text())
        assert written == {
            "data": {"watch_test_sets": False, "batch_size": 8},  # a test set that is watched could be chosen by
            "report": False,
            "checkpoint_keep": 0,
            "tiny": {"x": trial.params["tiny.x"]},
            "seed_everything": 0,
            "monitor": "validation/accuracy",
        }
    assert len(lines) == 4
    assert lines[-1].startswith(("trial 3 (4/4): validation/accuracy 0.9900 in ", "trial 2 (4/4)"))
    assert "best 1.0000 of trial 2" in lines[-1]
    assert sorted(re.search(r"\((\d)/4\)", line)[1] for line in lines) == ["1", "2", "3", "4"]


def test_a_trial_is_the_mean_over_its_seeds(tmp_path: Path, launcher: Recorder) -> None:
    crew, _ = runner(tmp_path, seeds=3, first_seed=5, trials=1, space={"tiny.x": {"categorical": [0.3]}})
    crew.run(launcher)
    (trial,) = crew.queue.trials()
    assert trial.value == pytest.approx(1 + (5 + 6 + 7) / 3)
    assert sorted(path.name for path in (tmp_path / "study" / "trials" / "0000").iterdir()) == [
        "seed5",
        "seed6",
        "seed7",
    ]
    assert ['"report": true' in each["APLOT_TRIAL"] for each in launcher.variables] == [True, False, False]


def test_a_pruned_first_seed_ends_the_trial(tmp_path: Path, launcher: Recorder) -> None:
    crew, lines = runner(tmp_path, seeds=2, trials=1, overrides={"tiny.prune": 1})
    crew.run(launcher)
    assert [trial.state for trial in crew.queue.trials()] == [TrialState.PRUNED]
    assert len(launcher.children) == 1
    assert "(1/1): pruned in" in lines[0]


def test_a_failing_trial_is_kept_with_its_last_lines_and_the_study_goes_on(tmp_path: Path, launcher: Recorder) -> None:
    crew, lines = runner(tmp_path, overrides={"tiny.fail": 0.35})
    crew.run(launcher)
    assert [trial.state.name for trial in crew.queue.trials()] == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    kept = crew.queue.trials()[3].user_attrs[FAILURE]
    log = tmp_path / "study" / "trials" / "0003" / "log.txt"
    assert kept.splitlines() == [*log.read_text().splitlines(), f"(exit code 1, {log})"]
    assert lines[-1].startswith("trial 3 failed: x is too large (x 0.4; ")
    assert crew.queue.progress().failed == 1


def test_three_failures_in_a_row_stop_the_study_and_it_goes_on_once_mended(tmp_path: Path, launcher: Recorder) -> None:
    crew, _ = runner(tmp_path, overrides={"tiny.fail": 0.15})
    with pytest.raises(
        RunError, match=r"3 trials in a row failed, the last, trial 3, with: x is too large; "
    ) as caught:
        crew.run(launcher)
    assert "\n" not in str(caught.value)
    again, _ = runner(tmp_path)
    again.run(launcher)
    done = [trial for trial in again.queue.trials() if trial.state is TrialState.COMPLETE]
    assert sorted(trial.params["tiny.x"] for trial in done) == [0.1, 0.2, 0.3, 0.4]


def test_values_that_an_expression_cannot_take_are_a_failed_trial(tmp_path: Path, launcher: Recorder) -> None:
    space = {"n": {"categorical": [0, 2], "sets": {"tiny.x": "1 / n"}}}
    crew, lines = runner(tmp_path, space=space)
    crew.run(launcher)
    assert [trial.state.name for trial in crew.queue.trials()] == ["FAIL", "COMPLETE"]
    assert "division by zero" in lines[0]


def test_a_killed_child_is_tried_again_until_that_is_its_own_fault(tmp_path: Path, launcher: Recorder) -> None:
    crew, lines = runner(tmp_path, overrides={"tiny.sleep": 30}, space={"tiny.x": {"categorical": [0.1]}})
    done = threading.Event()

    def kill() -> None:
        seen = 0
        while not done.wait(0.01):
            if len(launcher.children) > seen:
                seen = len(launcher.children)
                os.kill(launcher.children[-1].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        crew.run(launcher)
    finally:
        done.set()
        thread.join()
    assert len(launcher.children) == MAX_DEATHS
    assert [line.startswith("trial") and "was killed and will be tried again" in line for line in lines] == [
        *[True] * (MAX_DEATHS - 1),
        False,
    ]
    assert crew.queue.progress().failed == 1
    assert crew.queue.trials()[-1].user_attrs[FAILURE].startswith(f"killed {MAX_DEATHS} times")


def test_it_waits_for_what_others_run_and_says_so(tmp_path: Path, launcher: Recorder) -> None:
    crew, lines = runner(tmp_path, space={"tiny.x": {"categorical": [0.1, 0.2]}})
    claim = crew.queue.claim()
    assert claim is not None
    timer = threading.Timer(3, lambda: crew.queue.finish(claim, 0.5))
    timer.start()
    crew.run(launcher)
    timer.join()
    assert crew.queue.progress().finished == 2
    assert len(launcher.children) == 1
    assert lines[1:] == [f"waiting for trials of other processes: trial 0 on {platform.node()}, process {os.getpid()}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_children_and_gives_their_trials_back(
    number: int, tmp_path: Path, launcher: Recorder
) -> None:
    crew, _ = runner(tmp_path, workers=2, overrides={"tiny.sleep": 30})
    before = signal.getsignal(number)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(Stopped) as caught:
        crew.run(launcher)
    assert caught.value.number == number
    assert signal.getsignal(number) is before
    assert len(launcher.children) == 2
    assert all(child.ended.done() for child in launcher.children)
    states = [trial.state.name for trial in crew.queue.trials()]
    assert states == ["FAIL", "FAIL", "WAITING", "WAITING"]
    again, _ = runner(tmp_path, workers=2)
    again.run(launcher)
    assert again.queue.progress().finished == 4


def test_each_worker_has_its_devices_and_its_share_of_the_cores(
    tmp_path: Path, launcher: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    crew, _ = runner(tmp_path, workers=2, devices=[[0, 1], 3], overrides={"tiny.sleep": 0.3})
    crew.run(launcher)
    assert {each["CUDA_VISIBLE_DEVICES"] for each in launcher.variables} == {"0,1", "3"}
    cores = len(os.sched_getaffinity(0))
    assert {each["OMP_NUM_THREADS"] for each in launcher.variables} == {str(max(1, cores // 2))}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(2) == 3
