"""`tune` as a user runs it: real tiny runs of fit, and one line for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from aplot_lightning.cli import main
from aplot_lightning.tuning.storage import open_study
from tests.runs import curve
from tests.tuning.studies import study_file

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's own, hidden from users
FIT = {"trainer.max_epochs": 1, "trainer.val_check_interval": 3}


def real_study(folder: Path, laboratory: Any, **keys: Any) -> Path:
    fixed = {
        "configs": [laboratory.config, str(ROOT / "conf" / "objective" / "bt.yaml")],
        "overrides": FIT,
        "sampler": "grid",
        "space": {"model.learning_rate": {"categorical": [1.0e-3, 3.0e-3]}},
    }
    return study_file(folder, **{**fixed, **keys})


@pytest.fixture(scope="module")
def finished(laboratory: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a finished study of two runs."""
    folder = tmp_path_factory.mktemp("finished")
    file = real_study(folder, laboratory)
    assert main(["tune", "--config", str(file), "--confirm", "false"]) == 0
    return file


def trials(file: Path) -> list[Any]:
    return open_study(f"sqlite:///{file.parent / 'study' / 'study.db'}", "tiny", direction="maximize")[0].trials


def test_each_trials_value_is_the_best_that_its_run_logged(finished: Path) -> None:
    found = trials(finished)
    assert [trial.params["model.learning_rate"] for trial in found] == [1.0e-3, 3.0e-3]
    for trial in found:
        run_dir = finished.parent / "study" / "trials" / f"{trial.number:04}"
        logged = curve(run_dir, "validation/accuracy")
        assert trial.value == pytest.approx(max(logged.values()), abs=1e-7)
        assert [*trial.intermediate_values.values()] == pytest.approx([*logged.values()], abs=1e-7)
        config = (run_dir / "config.yaml").read_text()
        assert f"learning_rate: {trial.params['model.learning_rate']}" in config
        assert (run_dir / "log.txt").read_text()


def test_a_finished_study_runs_nothing_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--config", str(finished), "--confirm", "false"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("study tiny: 2 of 2 trials finished, in sqlite:///")
    assert len(trials(finished)) == len(said) == 2


def test_a_study_of_another_space_is_refused(
    finished: Path, laboratory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = f"sqlite:///{finished.parent / 'study' / 'study.db'}"
    file = real_study(tmp_path, laboratory, space={"model.learning_rate": {"categorical": [1.0e-3, 4.0e-3]}})
    assert main(["tune", "--config", str(file), "--storage", storage]) == 2
    error = capsys.readouterr().err
    assert "aplot: study: 'tiny' exists already and differs in space.model.learning_rate.categorical" in error
    assert error.count("\n") == 1


def test_pruned_trials_count(laboratory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruner = {"class_path": "ThresholdPruner", "init_args": {"lower": 1.1}}
    file = real_study(tmp_path, laboratory, pruner=pruner, workers=2)
    assert main(["tune", "--config", str(file), "--confirm", "false"]) == 0
    assert [trial.state for trial in trials(file)] == [TrialState.PRUNED] * 2
    assert all(len(trial.intermediate_values) == 1 for trial in trials(file))
    assert capsys.readouterr().out.count(": pruned in ") == 2


def test_sigterm_ends_it_with_143_and_it_goes_on(laboratory: Any, tmp_path: Path) -> None:
    file = real_study(tmp_path, laboratory)
    words = [sys.executable, "-m", "aplot_lightning", "tune", "--config", str(file), "--confirm", "false"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    run = tmp_path / "study" / "trials" / "0000"
    while not (run / "log.txt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 143, said
    assert said.splitlines()[-1].startswith("stopped; its trials are queued again")
    assert main(words[3:]) == 0
    done = [trial for trial in trials(file) if trial.state is TrialState.COMPLETE]
    assert sorted(trial.params["model.learning_rate"] for trial in done) == [1.0e-3, 3.0e-3]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"monitor": "id/accuracy"}, "monitor: 'id/accuracy' may not select"),
        ({"monitor": "ood/hard/accuracy"}, "monitor: 'ood/hard/accuracy' may not select"),
        ({"storage": "postgresql://u:secret@127.0.0.1:1/none"}, "cannot be used"),
        ({"spaces": {}}, "'spaces' is not accepted"),
    ],
)
def test_mistakes_are_one_line_at_once(
    keys: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = study_file(tmp_path, **keys)
    assert main(["tune", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "secret" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.yaml", "study.yaml"]


def test_options_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune"]) == 2
    assert main(["tune", "--config", str(tmp_path / "none.yaml")]) == 2
    assert main(["tune", "--config", str(study_file(tmp_path)), "--workers", "0"]) == 2
    assert main(["tune", "--config", str(study_file(tmp_path)), "--jobs", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    for line, said in zip(lines, ("required", "cannot be read", "workers: 0 is less than 1", "jobs"), strict=True):
        assert line.startswith("aplot: ")
        assert said in line
    assert json.loads((tmp_path / "study.yaml").read_text())["study"] == "tiny"
