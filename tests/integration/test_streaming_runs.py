"""Runs on a streamed source, by the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import checkpoint, curve, probe


@pytest.fixture
def streamed(laboratory) -> dict[str, Any]:
    """Eight steps over 331 rows, so that a second pass begins."""
    return {
        **laboratory.resumable,
        "data.train": {"path": str(laboratory.folder / "train.jsonl"), "streaming": True},
        "trainer.max_steps": 8,
        "checkpoint_every_n_steps": 1,
    }


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.stress), 7])
def test_a_crashed_run_on_a_stream_resumes_to_the_bit(
    laboratory, streamed: dict[str, Any], tmp_path: Path, stop: int
) -> None:
    assert laboratory("fit", tmp_path / "whole", streamed) == 0
    with pytest.raises(MemoryError):
        laboratory("fit", tmp_path / "run", {**streamed, **probe("Interrupt", step=stop)})
    assert checkpoint(tmp_path / "run")["global_step"] == stop
    assert laboratory("fit", tmp_path / "run", {**streamed, "ckpt_path": "last"}) == 0
    expected, found = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    assert found["global_step"] == expected["global_step"] == 8
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
    assert curve(tmp_path / "run", "train/loss") == curve(tmp_path / "whole", "train/loss")
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["stream"]["read"] == report["train"]["total"]["read"] == 331


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trainer.max_steps": -1}, "data.train: a stream has no epochs: set --trainer.max_steps"),
        ({"trainer.val_check_interval": 0.5}, "a share of an epoch, and a stream has none: give a number of steps"),
        ({"data.ood.hard": {"path": "hard.jsonl", "streaming": True}}, "data.ood.hard: a source with streaming: true"),
        ({"data.train": [{"path": "train.jsonl", "streaming": True}, "hard.jsonl"]}, "is the only one of data.train"),
        ({"data.sources_in_every_batch": True}, "the sources of a stream are not known beforehand"),
    ],
    ids=str,
)
def test_what_a_stream_cannot_do_is_said(
    laboratory, streamed: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(laboratory.folder)
    assert laboratory("fit", tmp_path / "run", {**streamed, **options}) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
