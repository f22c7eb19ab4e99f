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

from aplot_lightning.tuning import slots as module
from aplot_lightning.tuning.owners import is_gone, this_process
from aplot_lightning.tuning.slots import DIED, FAILURE, OWNER, SLOT, STOPPED, Slots, planned_slots
from aplot_lightning.tuning.study import StudyConfig, read_study
from tests.tuning.studies import STORAGES, location, study_file

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("APLOT_KILLS", 12))
GRID = {"tiny.x": {"categorical": [i / 12 for i in range(12)]}}


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return location(request.param, tmp_path)


def study(folder: Path, **keys: Any) -> StudyConfig:
    return read_study(study_file(folder, **keys))


def states(slots: Slots) -> list[str]:
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
        own = Slots(config, {})
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
    slots = Slots(config, {})
    assert states(slots) == ["COMPLETE"] * 12
    assert slots.progress().finished == 12
    assert slots.progress().is_over
    assert slots.best().value == 11 / 12


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_values_do_not_depend_on_who_draws_them(sampler: str, tmp_path: Path) -> None:
    drawn = []
    for name, processes in (("one", 1), ("two", 2)):
        config = study(tmp_path, sampler=sampler, trials=12, storage=f"journal:{tmp_path / name}")
        own = [Slots(config, {}) for _ in range(processes)]
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


def test_what_the_dead_left_is_tried_again_with_the_same_values(storage: str, tmp_path: Path) -> None:
    config = study(tmp_path, sampler="random", trials=2, storage=storage)
    code = (
        "import sys; from aplot_lightning.tuning.slots import Slots;"
        "from aplot_lightning.tuning.study import read_study;"
        "print(Slots(read_study(sys.argv[1]), {}).claim().values['tiny.x'])"
    )
    file = study_file(tmp_path, sampler="random", trials=2, storage=storage)
    told = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, cwd=ROOT, check=True)
    slots = Slots(config, {})
    assert states(slots) == ["RUNNING", "WAITING"]
    other = slots.claim()
    assert other is not None
    assert states(slots) == ["FAIL", "RUNNING", "WAITING"]
    again = slots.claim()
    assert again is not None
    assert again.values == {"tiny.x": float(told.stdout)}
    assert other.values != again.values
    assert slots.claim() is None
    assert slots.progress().running == 2


def test_a_trial_without_an_owner_died_in_being_taken(storage: str, tmp_path: Path) -> None:
    slots = Slots(study(tmp_path, trials=1, storage=storage), {})
    slots.put_in_order()
    waiting = slots.trials()[0]
    assert slots.storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)
    claim = slots.claim()
    assert claim is not None
    assert claim.number == 1
    assert states(slots) == ["FAIL", "RUNNING"]


def test_a_slot_whose_trial_failed_but_was_not_queued_again_is_not_lost(storage: str, tmp_path: Path) -> None:
    slots = Slots(study(tmp_path, sampler="grid", space=GRID, storage=storage), {})
    claim = slots.claim()
    assert claim is not None
    slots.storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)  # and killed here
    slots.put_in_order()
    waiting = [trial for trial in slots.trials() if trial.state is TrialState.WAITING]
    assert sorted(trial.user_attrs[SLOT] for trial in waiting) == sorted(slots.planned)


def test_other_machines_trials_are_left_until_their_heartbeat_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aplot_lightning.tuning.storage.HEARTBEAT", 1)
    monkeypatch.setattr("aplot_lightning.tuning.storage.GRACE", 1)
    elsewhere = {**this_process(), "host": "elsewhere", "identity": "1 1", "pid": 1}
    monkeypatch.setattr(module, "this_process", lambda: elsewhere)
    config = study(tmp_path, trials=1)
    slots = Slots(config, {})
    claim = slots.claim()
    assert claim is not None
    assert slots.claim() is None
    assert states(slots) == ["RUNNING"]
    threading.Event().wait(2.5)
    again = slots.claim()
    assert again is not None
    assert again.values == claim.values
    assert states(slots) == ["FAIL", "RUNNING"]
    # the machine was only asleep: what it tells counts no more
    assert not slots.finish(claim, 0.5)
    assert slots.finish(again, 0.5)
    assert states(slots) == ["FAIL", "COMPLETE"]


def test_a_failed_point_is_given_up_and_a_failed_sample_is_drawn_anew(storage: str, tmp_path: Path) -> None:
    grid = Slots(study(tmp_path, study="grid", sampler="grid", space=GRID, trials=2, storage=storage), {})
    claim = grid.claim()
    assert claim is not None
    grid.fail(claim, "a line\nthe reason")
    other = grid.claim()
    assert other is not None
    assert grid.claim() is None
    grid.finish(other, 0.5)
    assert (grid.progress().failed, grid.progress().is_over) == (1, True)
    assert grid.trials()[0].user_attrs[FAILURE] == "a line\nthe reason"
    # who starts the command again has mended the cause
    again = Slots(grid.config, {})
    repeated = again.claim()
    assert repeated is not None
    assert repeated.values == claim.values

    sample = Slots(study(tmp_path, study="sample", sampler="random", trials=1, storage=storage), {})
    first = sample.claim()
    assert first is not None
    sample.fail(first, "reason")
    second = sample.claim()
    assert second is not None
    assert first.values != second.values


def test_failures_in_a_row_are_only_those_after_the_last_success_and_since_the_start(tmp_path: Path) -> None:
    config = study(tmp_path, sampler="random", trials=5)
    slots = Slots(config, {})
    for fails in (True, False, True, True):
        claim = slots.claim()
        assert claim is not None
        slots.fail(claim, "reason") if fails else slots.finish(claim, 0.5)
    claim = slots.claim()
    assert claim is not None
    slots.release(claim, STOPPED)  # neither failed nor ended well
    assert [trial.number for trial in slots.failures_in_a_row()] == [2, 3] or len(slots.failures_in_a_row()) == 2
    assert Slots(config, {}).failures_in_a_row() == []


def test_released_trials_come_back_and_deaths_are_counted(storage: str, tmp_path: Path) -> None:
    slots = Slots(study(tmp_path, trials=1, storage=storage), {})
    values = []
    for why in (STOPPED, DIED, DIED):
        claim = slots.claim()
        assert claim is not None
        values.append(claim.values)
        slots.release(claim, why)
    assert slots.deaths("sample:0") == 2
    assert values[0] == values[1] == values[2]
    assert slots.progress().left == 1


def test_pruned_trials_count_and_keep_their_last_report(storage: str, tmp_path: Path) -> None:
    slots = Slots(study(tmp_path, trials=1, storage=storage), {})
    claim = slots.claim()
    assert claim is not None
    slots.storage.set_trial_intermediate_value(claim.trial_id, 1, 0.25)
    slots.finish(claim, None)
    trial = slots.trials()[0]
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.25)
    assert slots.progress().is_over
    assert slots.best() is None


def test_more_trials_are_added_and_fewer_end_the_study(tmp_path: Path) -> None:
    def run(trials: int) -> list[dict[str, Any]]:
        slots = Slots(study(tmp_path, sampler="random", trials=trials), {})
        while (claim := slots.claim()) is not None:
            slots.finish(claim, 0.5)
        return [trial.params for trial in slots.trials() if trial.state is TrialState.COMPLETE]

    few = run(3)
    assert run(5)[:3] == few
    assert len(run(5)) == 5
    assert len(run(2)) == 5


def test_a_process_is_gone_when_its_id_is_anothers() -> None:
    here = this_process()
    assert not is_gone(here)
    assert is_gone(None)
    assert is_gone({**here, "identity": f"{os.getpid()} 1"})
    assert is_gone({**here, "boot": "another"})
    assert not is_gone({**here, "host": "elsewhere", "identity": "1 1"})
    assert not is_gone({**here, "processes": "pid:[1]", "identity": "1 1"})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_gone({**here, "pid": ended.pid, "identity": f"{ended.pid} 5"})


def test_every_point_is_finished_once_whoever_is_killed(storage: str, tmp_path: Path) -> None:
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
    slots = Slots(read_study(file), {})
    done = [trial for trial in slots.trials() if trial.state is TrialState.COMPLETE]
    assert sorted(trial.params["tiny.x"] for trial in done) == [i / 12 for i in range(12)]
    assert all(trial.value == 1 - (trial.params["tiny.x"] - 0.3) ** 2 for trial in done)
    assert {trial.state for trial in slots.trials()} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert not any(FAILURE in trial.user_attrs for trial in slots.trials())
    assert all(OWNER in trial.user_attrs for trial in done)
    assert optuna.load_study(study_name="tiny", storage=slots.storage).best_value == slots.best().value
