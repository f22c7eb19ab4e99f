"""LoRA under DDP and FSDP2: the run of one process, and resuming under another of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aplot_lightning import RewardModel
from tests.runs import checkpoint

pytestmark = pytest.mark.stress
FSDP = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
RANKS: dict[str, dict[str, Any]] = {
    "ddp": {"trainer.strategy": "ddp"},
    "fsdp": {"trainer.strategy": FSDP},
}
# 31 pairs in micro-batches of 8: uneven over two ranks; a plan over the whole batch
WHOLE = {
    "objective": "aplot",
    "model.lora.rank": 4,
    "model.gradient_checkpointing": True,
    "data.batch_size": 31,
    "data.micro_batch_size": 8,
    "data.ood": {},
    "trainer.gradient_clip_val": 0.5,
    "checkpoint_every_n_steps": 2,
    "checkpoint_keep": 3,
}


def launch(laboratory: Any, run_dir: Path, name: str, options: dict[str, Any]) -> None:
    assert "Warning" not in laboratory.on_two_ranks(run_dir, {**WHOLE, **RANKS[name], **options})


@pytest.fixture(scope="module")
def one(laboratory: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps in one process, with a checkpoint of step 2."""
    run_dir = tmp_path_factory.mktemp("lora") / "one"
    assert laboratory("fit", run_dir, {**WHOLE, "trainer.max_steps": 4}) == 0
    return run_dir


@pytest.mark.parametrize("name", RANKS)
def test_two_ranks_are_the_same_run_as_one_process(laboratory: Any, one: Path, tmp_path: Path, name: str) -> None:
    launch(laboratory, tmp_path / "run", name, {"trainer.max_steps": 4})
    expected, found = checkpoint(one), checkpoint(tmp_path / "run")
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=1e-5)
    assert found["optimizer_states"][0]["state"].keys() == expected["optimizer_states"][0]["state"].keys()
    items = [{"prompt": "How many in all?", "response": str(number)} for number in range(4)]
    plain, known = (RewardModel.from_pretrained(str(run)) for run in (tmp_path / "run", one))
    assert plain.score(items) == pytest.approx(known.score(items), abs=1e-4)
    # one process resumes what two ranks wrote
    (tmp_path / "on" / "checkpoints").mkdir(parents=True)
    former = tmp_path / "run" / "checkpoints" / "step-00000002.ckpt"
    shutil.copyfile(former, tmp_path / "on" / "checkpoints" / "last.ckpt")
    assert laboratory("fit", tmp_path / "on", {**WHOLE, "trainer.max_steps": 4, "ckpt_path": "last"}) == 0
    torch.testing.assert_close(checkpoint(tmp_path / "on")["state_dict"], expected["state_dict"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RANKS)
def test_a_run_resumes_on_two_ranks(laboratory: Any, one: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    former = one / "checkpoints" / "step-00000002.ckpt"
    shutil.copyfile(former, tmp_path / "run" / "checkpoints" / "last.ckpt")
    launch(laboratory, tmp_path / "run", name, {"trainer.max_steps": 4, "ckpt_path": "last"})
    found = checkpoint(tmp_path / "run")
    assert found["global_step"] == 4
    torch.testing.assert_close(found["state_dict"], checkpoint(one)["state_dict"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_sharded_adapters_stay_float32(laboratory: Any, tmp_path: Path, precision: str) -> None:
    options = {"trainer.precision": precision, "trainer.max_steps": 2, "model.lora.dora": True}
    launch(laboratory, tmp_path / "run", "fsdp", options)
    state = checkpoint(tmp_path / "run")["state_dict"]
    base = torch.bfloat16 if precision == "bf16-true" else torch.float32
    found = {("lora_" in name or ".head." in name, tensor.dtype) for name, tensor in state.items()}
    assert found == {(True, torch.float32), (False, base)}
    ups = [tensor for name, tensor in state.items() if "lora_B" in name]
    assert all(tensor.abs().max() > 0 for tensor in ups)
