"""The run directory's rules, and mistakes that a user makes: exit code 2, one line, nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

QUICK = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0}


def steps(run_dir: Path, name: str = "last") -> int:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]


def complaint(capsys: pytest.CaptureFixture) -> str:
    """The one line that a mistake leaves on stderr (the seed is announced before)."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("Seed set")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("aplot: ")
    return lines[0]


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


def test_a_run_is_not_overwritten_by_accident(laboratory, copied_run: Path, capsys) -> None:
    before = (copied_run / "metrics.json").read_bytes()
    assert laboratory("fit", copied_run, QUICK) == 2
    assert "--overwrite true" in complaint(capsys)
    assert (copied_run / "metrics.json").read_bytes() == before
    assert steps(copied_run) == 18


def test_overwrite_replaces_what_a_run_wrote_and_nothing_else(laboratory, copied_run: Path) -> None:
    (copied_run / "notes.txt").write_text("mine")
    (copied_run / "mine").mkdir()
    assert laboratory("fit", copied_run, {**QUICK, "overwrite": "true"}) == 0
    assert steps(copied_run) == steps(copied_run, "best") == 1
    assert (copied_run / "notes.txt").read_text() == "mine"
    assert (copied_run / "mine").is_dir()
    left = {path.name for path in copied_run.iterdir()} - {"notes.txt", "mine"}
    # of a run without validation: no predictions, no errors, no margins of the earlier objective
    assert not left & {"predictions", "diagnostics"}
    assert json.loads((copied_run / "metrics.json").read_text())["train"]["steps"] == 1
    assert "\noverwrite:" not in (copied_run / "config.yaml").read_text()


def test_without_validation_best_is_last_and_accuracies_are_null(laboratory, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert laboratory("fit", run_dir, {"trainer.max_steps": 3, "trainer.limit_val_batches": 0, "report": True}) == 0
    best, last = ((run_dir / "checkpoints" / f"{name}.ckpt").read_bytes() for name in ("best", "last"))
    assert best == last
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["id"]["accuracy"] is metrics["ood"]["hard"]["accuracy"] is metrics["ood_mean"]["accuracy"] is None
    assert metrics["train"]["steps"] == 3
    assert (run_dir / "report.md").is_file()
    assert (run_dir / "run.json").is_file()


def test_data_too_small_for_a_validation_set_trains_and_says_so(laboratory, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with pytest.warns(UserWarning, match="data.validation_share"):
        assert laboratory("fit", run_dir, {"trainer.max_steps": 2, "data.validation_share": 0.0, "data.ood": {}}) == 0
    assert steps(run_dir) == steps(run_dir, "best") == 2
    assert json.loads((run_dir / "metrics.json").read_text())["id"]["accuracy"] is not None
    options = {"trainer.max_steps": 4, "data.validation_share": 0.0, "data.ood": {}, "ckpt_path": "last"}
    with pytest.warns(UserWarning, match="data.validation_share"):
        assert laboratory("fit", run_dir, options) == 0
    assert steps(run_dir, "best") == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model.learning_rat": 0.1}, "learning_rat"),
        ({"trainer.max_epoch": 1}, "max_epoch"),
        ({"trainer.accumulate_grad_batches": 2}, "data.micro_batch_size"),
        ({"monitor": "id/accuracy"}, "monitor"),
        ({"monitor": "ood_mean/accuracy"}, "monitor"),
        ({"monitor": "validation/acuracy"}, "monitor"),
        ({"monitor": "ood_validation/topics/accuracy"}, "monitor"),  # there is no such set
        ({"data.validation_share": 0.6, "data.id_share": 0.5}, "data.validation_share"),
        ({"ckpt_path": "last"}, "ckpt_path"),
        ({"ckpt_path": "absent.ckpt"}, "absent.ckpt"),
        ({"init_from": "./absent"}, "absent"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    laboratory, tmp_path: Path, capsys, options: dict[str, Any], said: str
) -> None:
    run_dir = tmp_path / "runs" / "run"
    assert laboratory("fit", run_dir, options) == 2
    assert said in complaint(capsys)
    assert not (tmp_path / "runs").exists()


def test_a_file_in_place_of_the_run_dir_is_a_mistake(laboratory, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    assert laboratory("fit", tmp_path / "file", QUICK) == 2
    assert "run_dir" in complaint(capsys)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_ood_validation_set_may_select(laboratory, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = {
        "monitor": "ood_validation/topics/log_loss",
        "data.ood_validation.topics": str(laboratory.folder / "topics.jsonl"),
        "data.validation_share": 0.0,
        "data.ood": {},
        "trainer.max_steps": 6,
        "trainer.val_check_interval": 2,
    }
    assert laboratory("fit", run_dir, options) == 0
    state = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    kept = next(value for value in state.values() if "best_model_score" in value)
    assert kept["monitor"] == options["monitor"]
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert kept["best_model_score"].item() == pytest.approx(metrics["ood_validation"]["topics"]["log_loss"])
    assert "validation" not in metrics


def test_run_dir_is_made_up_from_the_configs_names(laboratory, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = laboratory.arguments("fit", tmp_path, {"objective": "bt", **QUICK})[:-2]
    monkeypatch.setattr(laboratory, "arguments", lambda *arguments: words)
    assert laboratory("fit", tmp_path) == 0
    (run_dir,) = (tmp_path / "runs" / "base").iterdir()
    assert run_dir.name.startswith("bt-")
    assert steps(run_dir) == 1
