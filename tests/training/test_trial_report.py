"""A run of fit that is a trial of a study: what it reports, and that the study stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from aplot_lightning.tuning.storage import open_study
from tests.runs import curve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's own, hidden from users
OPTIONS = {"data.ood": {}, "trainer.max_epochs": 2, "trainer.val_check_interval": 3, "objective": "bt"}


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A running trial of a study, which the environment names."""
    location = f"sqlite:///{tmp_path / 'study.db'}"
    study, _ = open_study(location, "s", direction="maximize")
    study.enqueue_trial({})
    with pytest.warns(UserWarning, match="Heartbeat"):
        study.ask()
    told = {
        "location": location,
        "study": "s",
        "direction": "maximize",
        "pruner": "none",
        "number": 0,
        "report": True,
    }
    monkeypatch.setenv("APLOT_TRIAL", json.dumps(told))
    return told


def stored(trial: dict[str, Any]) -> optuna.trial.FrozenTrial:
    return open_study(trial["location"], "s", direction="maximize")[0].trials[0]


def test_every_validation_is_reported_and_the_best_is_the_value(
    laboratory: Any, tmp_path: Path, trial: dict[str, Any]
) -> None:
    assert laboratory("fit", tmp_path / "run", OPTIONS) == 0
    logged = curve(tmp_path / "run", "validation/accuracy")
    assert [*stored(trial).intermediate_values] == [*range(1, len(logged) + 1)]
    assert [*stored(trial).intermediate_values.values()] == pytest.approx([*logged.values()], abs=1e-7)
    told = json.loads((tmp_path / "run" / "value.json").read_text())
    assert told["value"] == max(told["values"].values()) == pytest.approx(max(logged.values()), abs=1e-7)
    assert not told["pruned"]
    assert not (tmp_path / "run" / "metrics.json").exists()  # no test set is evaluated
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_a_metric_of_losses_has_its_lowest_as_value(
    laboratory: Any, tmp_path: Path, trial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APLOT_TRIAL", json.dumps({**trial, "report": False}))
    assert laboratory("fit", tmp_path / "run", {**OPTIONS, "monitor": "validation/log_loss"}) == 0
    told = json.loads((tmp_path / "run" / "value.json").read_text())
    assert told["value"] == min(told["values"].values()) < max(told["values"].values())
    assert stored(trial).intermediate_values == {}


def test_a_pruned_run_ends_in_order_after_that_validation(
    laboratory: Any, tmp_path: Path, trial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the second validation is the first that may stop it
    pruner = {"class_path": "ThresholdPruner", "init_args": {"lower": 1.1, "n_warmup_steps": 2}}
    monkeypatch.setenv("APLOT_TRIAL", json.dumps({**trial, "pruner": pruner}))
    assert laboratory("fit", tmp_path / "run", OPTIONS) == 0
    told = json.loads((tmp_path / "run" / "value.json").read_text())
    assert told["pruned"]
    assert [*told["values"]] == ["3", "6"]
    assert len(stored(trial).intermediate_values) == 2


def test_the_last_validation_prunes_nothing(
    laboratory: Any, tmp_path: Path, trial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = {"class_path": "ThresholdPruner", "init_args": {"lower": 1.1}}
    monkeypatch.setenv("APLOT_TRIAL", json.dumps({**trial, "pruner": pruner}))
    options = {**OPTIONS, "trainer.max_steps": 3}
    assert laboratory("fit", tmp_path / "run", options) == 0
    assert not json.loads((tmp_path / "run" / "value.json").read_text())["pruned"]


def test_a_storage_that_is_gone_is_one_line(
    laboratory: Any,
    tmp_path: Path,
    trial: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("APLOT_TRIAL", json.dumps({**trial, "location": "postgresql://nobody@127.0.0.1:1/none"}))
    assert laboratory("fit", tmp_path / "run", OPTIONS) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("aplot: storage: ")]


def test_two_ranks_stop_together(laboratory: Any, tmp_path: Path, trial: dict[str, Any], monkeypatch: Any) -> None:
    pruner = {"class_path": "ThresholdPruner", "init_args": {"lower": 1.1}}
    monkeypatch.setenv("APLOT_TRIAL", json.dumps({**trial, "pruner": pruner}))
    laboratory.launch(tmp_path / "run", {**OPTIONS, "trainer.devices": 2, "trainer.strategy": "ddp"})
    assert json.loads((tmp_path / "run" / "value.json").read_text())["values"].keys() == {"3"}
