"""Real runs as child processes: on two ranks, killed with their parent, and forked from the preloaded server."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aplot_lightning import RewardModel
from aplot_lightning.errors import UserError
from aplot_lightning.tuning.processes import Launcher
from tests.processes import living, wait_until
from tests.runs import checkpoint

ROOT = Path(__file__).parents[2]
MARK = "APLOT_TEST_MARK"
KILLS = int(os.environ.get("APLOT_KILLS", 0))  # more moments, drawn at random
# two loader workers beside each rank, and steps without an end
ENDLESS = {
    "data.num_workers": 1,
    "data.ood": {},
    "trainer.max_epochs": -1,
    "trainer.max_steps": 100_000,
    "trainer.limit_val_batches": 0,
    "trainer.logger": False,
    "checkpoint_every_n_steps": 1,
}
RANKS = {"trainer.devices": 2, "trainer.strategy": "ddp"}
PARENT = """
import json, sys
from pathlib import Path
from aplot_lightning.tuning.processes import Launcher
if __name__ == "__main__":
    arguments, log = json.loads(sys.argv[2]), Path(sys.argv[3])
    child = Launcher(preload=sys.argv[1] == "preload").start(arguments, log=log)
    print(child.pid, flush=True)
    sys.exit(child.ended.result())
"""


def parent_of(how: str, words: list[str], folder: Path) -> subprocess.Popen:
    environment = {**os.environ, MARK: str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, how, json.dumps(words), str(folder / "log")],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )


def cases() -> list[Any]:
    chance = random.Random(0)
    drawn = [(how, chance.uniform(0.1, 15)) for _ in range(KILLS) for how in ("lightning", "preload")]
    # None: in training, with both ranks and their workers at work
    moments = [("lightning", None), ("preload", None), ("lightning", 1.0), *drawn]
    return [pytest.param(how, moment, id=f"{how} {moment or 'training'}") for how, moment in moments]


@pytest.mark.stress
@pytest.mark.parametrize(("how", "moment"), cases())
def test_no_process_of_a_child_is_left_ten_seconds_after_its_parent_was_killed(
    laboratory: Any, tmp_path: Path, how: str, moment: float | None
) -> None:
    mark, last = {MARK: str(tmp_path)}, tmp_path / "run" / "checkpoints" / "last.ckpt"
    parent = parent_of(how, laboratory.arguments("fit", tmp_path / "run", {**ENDLESS, **RANKS}), tmp_path)
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline().strip().isdigit()
        if moment is None:
            wait_until(lambda: last.exists() or parent.poll() is not None, 120)
            assert parent.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert len(living(mark)) >= 5  # the parent, two ranks, a loader's worker each
        else:
            time.sleep(moment)
    finally:
        parent.kill()
    wait_until(lambda: not living(mark), 10)
    parent.wait()
    parent.stdout.close()


FROZEN = {
    "objective": "bt",
    "model.freeze_backbone": True,
    "trainer.max_steps": 6,
    "trainer.max_epochs": -1,
    "trainer.val_check_interval": 3,
}


def figures(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "metrics.json").read_text())
    return {name: found[name] for name in ("validation", "id", "ood")}


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.stress)])
def test_a_forked_run_is_the_same_as_one_of_its_own(laboratory: Any, tmp_path: Path, ranks: int) -> None:
    """The same bits, and the command to repeat; of two ranks the second is a process of its own."""
    options = {"trainer.max_epochs": 1, "data.ood": {}, "report": False, "objective": "aplot", "model.dropout": 0.1}
    options |= RANKS if ranks == 2 else {}
    arguments = {how: laboratory.arguments("fit", tmp_path / how, options) for how in ("own", "forked")}
    environment = {"OMP_NUM_THREADS": "1"}
    with Launcher(preload=True) as launcher, Launcher() as plain:
        children = [
            launcher.start(arguments["forked"], log=tmp_path / "forked.log", environment=environment),
            plain.start(arguments["own"], log=tmp_path / "own.log", environment=environment),
        ]
        assert [child.ended.result(200) for child in children] == [0, 0], children[0].log.read_text()[-2000:]
    own, forked = (checkpoint(tmp_path / how) for how in ("own", "forked"))
    torch.testing.assert_close(forked["state_dict"], own["state_dict"], rtol=0, atol=0)
    assert figures(tmp_path / "forked") == figures(tmp_path / "own")
    run = json.loads((tmp_path / "forked" / "run.json").read_text())
    assert run["command"] == ["python", "-m", "aplot_lightning", *arguments["forked"]]
    assert run["hardware"]["ranks"] == ranks


def test_checkpoints_may_leave_out_a_frozen_backbone(
    laboratory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are the same, a run goes on from such a checkpoint, and nobody takes it for a model."""
    frozen = {**FROZEN, "data.ood": {"hard": str(laboratory.folder / "hard.jsonl")}}
    small = {**frozen, "checkpoint_backbone": False, "report": False}
    assert laboratory("fit", tmp_path / "whole", {**frozen, "report": True}) == 0
    assert laboratory("fit", tmp_path / "small", small) == 0
    assert figures(tmp_path / "small") == figures(tmp_path / "whole")
    assert (tmp_path / "whole" / "report.md").exists()
    assert not (tmp_path / "small" / "report.md").exists()
    assert not (tmp_path / "small" / "plots").exists()
    for file in ("best", "last"):
        whole, left = checkpoint(tmp_path / "whole", file), checkpoint(tmp_path / "small", file)
        assert left["state_dict"].keys() == {key for key in whole["state_dict"] if "backbone" not in key}
        for key, value in left["state_dict"].items():
            torch.testing.assert_close(value, whole["state_dict"][key], rtol=0, atol=0)

    (tmp_path / "part" / "checkpoints").mkdir(parents=True)
    former = tmp_path / "small" / "checkpoints" / "step-00000003.ckpt"
    shutil.copyfile(former, tmp_path / "part" / "checkpoints" / "last.ckpt")
    assert laboratory("fit", tmp_path / "part", {**small, "ckpt_path": "last"}) == 0
    torch.testing.assert_close(
        checkpoint(tmp_path / "part")["state_dict"], checkpoint(tmp_path / "small")["state_dict"], rtol=0, atol=0
    )
    # validating from it scores with the same model
    assert laboratory("test", tmp_path / "small", {**small, "ckpt_path": "last", "trainer.max_steps": 6}) == 0

    said = f"{tmp_path / 'small' / 'checkpoints' / 'best.ckpt'} was written without its frozen backbone"
    with pytest.raises(UserError, match=said):
        RewardModel.from_pretrained(str(tmp_path / "small"))
    capsys.readouterr()
    assert laboratory("fit", tmp_path / "small", {**frozen, "ckpt_path": "last"}) == 2
    assert "last.ckpt was written without its frozen backbone" in capsys.readouterr().err


def test_a_checkpoint_without_backbone_takes_no_other_backbone(
    laboratory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**FROZEN, "data.ood": {}, "checkpoint_backbone": False, "report": False}
    assert laboratory("fit", tmp_path / "run", small) == 0
    other = {**small, "ckpt_path": "last", "seed_everything": 4, "trainer.max_steps": 9}  # a backbone from scratch
    capsys.readouterr()
    assert laboratory("fit", tmp_path / "run", other) == 2
    assert "model.backbone has changed: start again with --overwrite true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model.freeze_backbone": False}, "this one trains: set it to true, or model.freeze_backbone to true"),
        (
            {"trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}]},
            "does not work with weight averaging; set it to true",
        ),
    ],
)
def test_a_backbone_that_a_run_needs_in_its_checkpoints_is_not_left_out(
    laboratory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], said: str
) -> None:
    frozen = {**FROZEN, "data.ood": {}, "checkpoint_backbone": False, **options}
    assert laboratory("fit", tmp_path / "run", frozen) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("aplot: checkpoint_backbone: ")
    assert error.endswith(said)
