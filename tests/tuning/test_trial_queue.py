"""Who gets which trial, on real storages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.study import StudyConfig, read_study
from aplot_lightning.tuning.trial_queue import FAILURE, SLOT, WORKER, TrialQueue, check_same_study, planned_slots
from tests.tuning.studies import STORAGES, location, study_file

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("APLOT_KILLS", 12))
GRID = {"tiny.x": {"categorical": [i / 12 for i in range(12)]}}


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return location(request.param, tmp_path)


def study(folder: Path, **keys: Any) -> StudyConfig:
    return read_study(study_file(folder, **keys))


def states(slots: TrialQueue) -> list[str]:
    return [trial.state.name for trial in slots.trials()]


def test_baselines_come_first_and_count(tmp_path: Path) -> None:
    config = study(tmp_path, trials=4)
    assert planned_slots(config, {"bt": {"tiny.x": 0.0}, "same": {"tiny.x": 0.0}}) == {
        "baseline:bt": {"tiny.x": 0.0},
        "sample:0": None,
        "sample:1": None,
        "sample:2": None,
    }
    grid = study(tmp_path, sampler="grid", space=GRID)
    assert [*planned_slots(grid, {"bt": {"tiny.x": 0.5}}).values()] == [
        {"tiny.x": 0.5},
        *({"tiny.x": i / 12} for i in range(12) if i != 6),
    ]
    part = [*planned_slots(study(tmp_path, sampler="grid", space=GRID, trials=5), {}).values()]
    assert len(part) == 5
    assert part != [{"tiny.x": i / 12} for i in range(5)]


def test_two_processes_never_get_the_same_trial_nor_one_too_many(storage: str, tmp_path: Path) -> None:
    config = study(tmp_path, sampler="grid", space=GRID, storage=storage)
    claimed: list[Any] = []

    def work() -> None:
        own = TrialQueue(config, {})
        while (claim := own.claim()) is not None:
            claimed.append(claim)
            own.finish(claim, claim.values["tiny.x"])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claim.values["tiny.x"] for claim in claimed) == [i / 12 for i in range(12)]
    assert len({claim.number for claim in claimed}) == 12
    slots = TrialQueue(config, {})
    assert states(slots) == ["COMPLETE"] * 12
    assert slots.progress().finished == 12
    assert slots.progress().is_over
    assert slots.best().value == 11 / 12


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_values_do_not_depend_on_the_process_that_draws_them(sampler: str, tmp_path: Path) -> None:
    drawn = []
    for name, processes in (("one", 1), ("two", 2)):
        config = study(tmp_path, sampler=sampler, trials=12, storage=f"journal:{tmp_path / name}")
        own = [TrialQueue(config, {}) for _ in range(processes)]
        values = []
        for i in range(12):
            claim = own[i % processes].claim()
            assert claim is not None
            values.append(claim.values)
            own[i % processes].finish(claim, 1 - (claim.values["tiny.x"] - 0.3) ** 2)
        assert own[0].claim() is None
        drawn.append(values)
    assert drawn[0] == drawn[1]
    assert len({value["tiny.x"] for value in drawn[0]}) == 12


def test_a_dead_process_trials_are_run_again_with_the_same_values(storage: str, tmp_path: Path) -> None:
    file = study_file(tmp_path, sampler="random", trials=2, storage=storage)
    code = (
        "import os, sys; from aplot_lightning.tuning.trial_queue import TrialQueue;"
        "from aplot_lightning.tuning.study import read_study;"
        "print(TrialQueue(read_study(sys.argv[1]), {}).claim().values['tiny.x'], flush=True); os._exit(1)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, cwd=ROOT)
    queue = TrialQueue(read_study(file), {})
    assert states(queue) == ["RUNNING"]
    again, other = queue.claim(), queue.claim()
    assert states(queue) == ["FAIL", "RUNNING", "RUNNING"]
    assert again is not None
    assert other is not None
    assert again.values == {"tiny.x": float(dead.stdout)}
    assert other.values != again.values
    assert queue.claim() is None
    assert queue.progress().running == 2


def test_a_living_process_keeps_its_trials(storage: str, tmp_path: Path) -> None:
    config = study(tmp_path, trials=1, storage=storage)
    mine, others = TrialQueue(config, {}), TrialQueue(config, {})
    claim = mine.claim()
    assert claim is not None
    assert others.claim() is None
    assert others.running_elsewhere() == [f"trial 0 on {mine.worker['host']}, process {os.getpid()}"]
    mine.close()


def test_another_machines_trial_comes_back_when_its_heartbeat_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aplot_lightning.tuning.storage.HEARTBEAT", 1)
    monkeypatch.setattr("aplot_lightning.tuning.storage.GRACE", 1)
    config = study(tmp_path, trials=1)
    elsewhere, queue = TrialQueue(config, {}), TrialQueue(config, {})
    claim = elsewhere.claim()
    assert claim is not None
    (tmp_path / "study" / "workers" / elsewhere.worker["lock"]).unlink()  # of another machine
    assert queue.claim() is None
    threading.Event().wait(2.5)
    again = queue.claim()
    assert again is not None
    assert again.values == claim.values
    assert states(queue) == ["FAIL", "RUNNING"]
    # the machine was only asleep: its result no longer counts
    assert not elsewhere.finish(claim, 0.5)
    assert queue.finish(again, 0.5)
    assert states(queue) == ["FAIL", "COMPLETE"]


def test_a_trial_that_died_before_its_process_wrote_its_name_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aplot_lightning.tuning.storage.GRACE", 1)
    queue = TrialQueue(study(tmp_path, trials=1, storage=location("journal", tmp_path)), {})
    queue.study.enqueue_trial({}, user_attrs={SLOT: "sample:0"})
    queue.study.ask()  # and killed here
    assert queue.claim() is None
    threading.Event().wait(1.2)
    assert queue.claim() is not None
    assert states(queue) == ["FAIL", "RUNNING"]


def test_two_trials_of_one_slot_count_once(tmp_path: Path) -> None:
    queue = TrialQueue(study(tmp_path, sampler="grid", space=GRID, trials=2), {})
    for _ in range(2):  # as two processes do that queue at the same moment
        slot, point = next(iter(queue.planned.items()))
        queue.study.enqueue_trial(point, user_attrs={SLOT: slot})
    first, second = queue.claim(), queue.claim()
    assert first is not None
    assert second is not None
    assert first.slot != second.slot
    assert queue.claim() is None


def test_a_failed_point_is_given_up_and_a_failed_sample_is_drawn_anew(storage: str, tmp_path: Path) -> None:
    grid = TrialQueue(study(tmp_path, study="grid", sampler="grid", space=GRID, trials=2, storage=storage), {})
    claim = grid.claim()
    assert claim is not None
    grid.fail(claim, "a line\nthe reason")
    other = grid.claim()
    assert other is not None
    assert grid.claim() is None
    grid.finish(other, 0.5)
    assert (grid.progress().failed, grid.progress().is_over) == (1, True)
    assert grid.trials()[0].user_attrs[FAILURE] == "a line\nthe reason"
    # who runs the command again has fixed the cause
    again = TrialQueue(grid.config, {})
    repeated = again.claim()
    assert repeated is not None
    assert repeated.values == claim.values

    sample = TrialQueue(study(tmp_path, study="sample", sampler="random", trials=1, storage=storage), {})
    first = sample.claim()
    assert first is not None
    sample.fail(first, "reason")
    second = sample.claim()
    assert second is not None
    assert first.values != second.values


def test_failures_in_a_row_are_only_those_after_the_last_success_and_since_the_start(tmp_path: Path) -> None:
    config = study(tmp_path, sampler="random", trials=5)
    slots = TrialQueue(config, {})
    for fails in (True, False, True, True):
        claim = slots.claim()
        assert claim is not None
        slots.fail(claim, "reason") if fails else slots.finish(claim, 0.5)
    claim = slots.claim()
    assert claim is not None
    slots.give_back(claim)  # neither failed nor complete
    assert [trial.number for trial in slots.failures_in_a_row()] == [2, 3] or len(slots.failures_in_a_row()) == 2
    assert TrialQueue(config, {}).failures_in_a_row() == []


def test_trials_that_are_given_back_keep_their_values_and_their_deaths(storage: str, tmp_path: Path) -> None:
    queue = TrialQueue(study(tmp_path, trials=1, storage=storage), {})
    values, deaths = [], []
    for died in (False, True, True, False):
        claim = queue.claim()
        assert claim is not None
        values.append(claim.values)
        deaths.append(queue.deaths(claim))
        queue.give_back(claim, died=died)
    assert deaths == [0, 0, 1, 2]
    assert all(each == values[0] for each in values)
    assert queue.progress().left == 1


def test_pruned_trials_count_and_keep_their_last_report(storage: str, tmp_path: Path) -> None:
    slots = TrialQueue(study(tmp_path, trials=1, storage=storage), {})
    claim = slots.claim()
    assert claim is not None
    claim.trial.report(0.25, 1)
    slots.finish(claim, None)
    trial = slots.trials()[0]
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.25)
    assert slots.progress().is_over
    assert slots.best() is None


def test_more_trials_are_added_and_fewer_end_the_study(tmp_path: Path) -> None:
    def run(trials: int) -> list[dict[str, Any]]:
        slots = TrialQueue(study(tmp_path, sampler="random", trials=trials), {})
        while (claim := slots.claim()) is not None:
            slots.finish(claim, 0.5)
        return [trial.params for trial in slots.trials() if trial.state is TrialState.COMPLETE]

    few = run(3)
    assert run(5)[:3] == few
    assert len(run(5)) == 5
    assert len(run(2)) == 5


def test_a_study_of_another_space_or_base_is_refused(tmp_path: Path) -> None:
    config = study(tmp_path)
    queue = TrialQueue(config, {})
    check_same_study(config, queue.study, {"model": {"dropout": 0.0}})
    check_same_study(study(tmp_path, trials=3, sampler="random"), queue.study, {"model": {"dropout": 0.0}})
    with pytest.raises(UserError, match=r"differs in base.model.dropout"):
        check_same_study(config, queue.study, {"model": {"dropout": 0.1}})
    with pytest.raises(UserError, match=r"differs in space.tiny.x"):
        check_same_study(study(tmp_path, space={"tiny.x": {"int": [0, 1]}}), queue.study, {"model": {"dropout": 0.0}})


@pytest.mark.stress
def test_every_point_is_finished_once_when_processes_are_killed(storage: str, tmp_path: Path) -> None:
    sleep = {"tiny.sleep": 1.3}  # twelve of them on four workers outlast twelve kills, on any machine
    keys = {"sampler": "grid", "space": GRID, "storage": storage, "workers": 2, "overrides": sleep}
    file = study_file(tmp_path, **keys)
    told = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("crew.py")), str(file), str(KILLS)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert told.returncode == 0, told.stderr[-2000:]
    assert json.loads(told.stdout.splitlines()[-1]) < KILLS
    slots = TrialQueue(read_study(file), {})
    done = [trial for trial in slots.trials() if trial.state is TrialState.COMPLETE]
    assert len({trial.user_attrs[SLOT] for trial in done}) == len(done) == 12
    assert all(trial.value == 1 - (trial.params["tiny.x"] - 0.3) ** 2 for trial in done)
    assert {trial.state for trial in slots.trials()} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert not any(FAILURE in trial.user_attrs for trial in slots.trials())
    assert all(WORKER in trial.user_attrs for trial in done)
    assert optuna.load_study(study_name="tiny", storage=slots.storage).best_value == slots.best().value
