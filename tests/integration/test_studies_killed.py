"""A study whose processes are killed again and again ends as if nothing had been, on every storage.

The killed ones are, at random moments: `tune` itself, the server that its runs are forked from, a run, and one rank of
a run of two. Every point of the grid must be finished exactly once, with the value of the undisturbed study, and after
the death of `tune` no process of its may live on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.tuning.studies import location

ROOT = Path(__file__).parents[2]
LONG = "APLOT_KILLS" in os.environ
KILLS = int(os.environ.get("APLOT_KILLS", 3))  # 12 for the whole measurement
KINDS = ("sqlite", "journal", "postgres") if LONG else ("sqlite", "journal")
VICTIMS = ("tune", "run", "rank", "tune", "run", "server")
MARK = "APLOT_KILL_TEST"
FIT = {
    "data.ood": {},
    "data.batch_size": 64,
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 2,
    "trainer.logger": False,
    "trainer.callbacks": [],
}


def study_file(folder: Path, laboratory: Any) -> Path:
    """A grid of 12 points (2 in short), half of them run on two ranks."""
    rates = [1.0e-3, 2.0e-3, 3.0e-3] if LONG else [3.0e-3]
    dropouts = [0.0, 0.1] if LONG else [0.1]
    content = {
        "study": "killed",
        "directory": str(folder / "study"),
        "configs": [laboratory.config, str(ROOT / "conf" / "objective" / "bt.yaml")],
        "overrides": FIT,
        "sampler": "grid",
        "pruner": "none",
        "workers": 2,
        "preload": True,
        "space": {
            "trainer.devices": {"categorical": [1, 2]},
            "model.learning_rate": {"categorical": rates},
            "model.dropout": {"categorical": dropouts},
        },
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


class Tune:
    """The command in a process of its own, whose family is known by a mark in its environment."""

    def __init__(self, file: Path, storage: str) -> None:
        self.mark = uuid.uuid4().hex
        words = ["tune", "--config", str(file), "--storage", storage, "--confirm", "false"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), MARK: self.mark}
        environment.pop("APLOT_RUN_DIR", None)
        self.log = file.with_name("tune.log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aplot_lightning", *words],
                env=environment,
                cwd=file.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def family(self) -> dict[int, int]:
        """Process -> its parent, of all that live and carry the mark."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if f"{MARK}={self.mark}".encode() not in (entry / "environ").read_bytes():
                    continue
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                found[int(entry.name)] = int(fields[1])
        return found

    def find(self, kind: str) -> list[int]:
        """The processes of a kind that live now."""
        family = self.family()
        tune = {self.process.pid} & set(family)
        servers = {process for process, parent in family.items() if parent in tune}
        runs = {process for process, parent in family.items() if parent in servers}
        ranks = {process for process, parent in family.items() if parent in runs and is_rank(process)}
        return sorted({"tune": tune, "server": servers, "run": runs, "rank": ranks}[kind])

    def outlived_by(self) -> list[int]:
        """What is left of the family ten seconds after the end of its head."""
        end = time.monotonic() + 10
        while (left := self.family()) and time.monotonic() < end:
            time.sleep(0.02)
        return sorted(left)


def is_rank(process: int) -> bool:
    try:
        return b"LOCAL_RANK=1" in Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False


def kill_one(tune: Tune, kind: str, chance: random.Random) -> bool:
    """Kills a process of the kind a random while after there is one; False where the study ended before."""
    while not (tune.find(kind) if kind == "tune" else tune.find("run") and tune.find(kind)):
        if tune.process.poll() is not None:
            return False
        time.sleep(0.02)
    end = time.monotonic() + (chance.uniform(0, 12) if kind == "tune" else chance.uniform(0, 3))
    while time.monotonic() < end and tune.process.poll() is None:
        time.sleep(0.02)
    victims = tune.find(kind)
    if not victims:
        return kill_one(tune, kind, chance)
    os.kill(chance.choice(victims), signal.SIGKILL)
    return True


def results(location: str) -> dict[str, list[float]]:
    """Point -> the values of its finished trials."""
    from aplot_lightning.tuning.storage import open_study

    study, _ = open_study(location, "killed", direction="maximize")
    found: dict[str, list[float]] = {}
    for trial in study.get_trials(deepcopy=False):
        assert trial.state.is_finished(), trial
        assert trial.state is optuna.trial.TrialState.COMPLETE or "failure" not in trial.user_attrs, trial.user_attrs
        values = found.setdefault(json.dumps(trial.params, sort_keys=True), [])
        if trial.state is optuna.trial.TrialState.COMPLETE:
            values.append(trial.value)
    return found


@pytest.fixture(scope="module")
def undisturbed(laboratory: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    location = f"sqlite:///{folder / 'study.db'}"
    tune = Tune(study_file(folder, laboratory), location)
    assert tune.process.wait(3000) == 0, tune.log.read_text()[-2000:]
    assert not tune.outlived_by()
    return results(location)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return location(request.param, tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_killed_study_is_as_the_undisturbed_one(
    laboratory: Any, undisturbed: dict[str, list[float]], place: str, tmp_path: Path
) -> None:
    file = study_file(tmp_path, laboratory)
    chance = random.Random(7)
    killed: list[str] = []
    tune = Tune(file, place)
    try:
        for turn in range(KILLS):
            kind = VICTIMS[turn % len(VICTIMS)]
            if not kill_one(tune, kind, chance):
                break
            killed.append(kind)
            if kind == "tune":
                tune.process.wait(60)
                assert not tune.outlived_by()
                tune = Tune(file, place)
        assert tune.process.wait(3000) == 0, tune.log.read_text()[-2000:]
        assert not tune.outlived_by()
    finally:
        if tune.process.poll() is None:
            tune.process.kill()
            tune.process.wait()
    assert len(killed) == KILLS, killed
    found = results(place)
    assert all(len(values) == 1 for values in found.values()), found
    assert found == undisturbed
    assert len(found) == (12 if LONG else 2)
