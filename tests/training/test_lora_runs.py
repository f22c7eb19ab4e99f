"""LoRA by the command line: resuming to the bit, loading the run as a plain model, and related options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aplot_lightning import RewardModel, RewardModelingModule
from aplot_lightning.cli import main
from aplot_lightning.model.lora import LoRA
from tests.runs import checkpoint

ITEMS = [{"prompt": "How many in all?", "response": str(number)} for number in range(4)]
LORA = {"model.lora.rank": 4, "model.lora.dropout": 0.2}
SHORT = {**LORA, "trainer.max_steps": 3, "data.ood": {}, "trainer.limit_val_batches": 0}

FOUR = {"model.backbone": "world-decoder", "model.lora.quantization.compute_dtype": "float32"}


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("aplot: "))
    return line


def values(run_dir: Path) -> dict[str, Any]:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    return {name: metrics[name] for name in ("id", "ood")}


def test_a_run_goes_on_to_the_bit_and_is_read_as_a_plain_model(laboratory: Any, tmp_path: Path) -> None:
    """Two passes, dropout of adapters, packed rows; a crash in mid-epoch."""
    options = {**LORA, "objective": "aplot", "data.ood": {}, "trainer.max_steps": 6, "checkpoint_every_n_steps": 1}
    assert laboratory("fit", tmp_path / "whole", options) == 0
    crash = [{"class_path": "tests.training.probes.Interrupt", "init_args": {"step": 4}}]
    with pytest.raises(MemoryError):
        laboratory("fit", tmp_path / "run", {**options, "trainer.callbacks": crash})
    assert laboratory("fit", tmp_path / "run", {**options, "ckpt_path": "last"}) == 0
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    for name in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)
    assert values(tmp_path / "run") == values(tmp_path / "whole")

    # the file holds the frozen weights, and nothing of theirs in the optimizer
    state = whole["state_dict"]
    trained = [name for name in state if "lora_" in name or ".head." in name]
    assert len(whole["optimizer_states"][0]["state"]) == len(trained)
    assert any(name.endswith("base_layer.weight") for name in state)
    assert whole["reward_model"]["lora"]["rank"] == 4

    plain = RewardModel.from_pretrained(str(tmp_path / "whole"))
    assert not any("lora" in name for name in plain.state_dict())
    module = RewardModelingModule(str(laboratory.folder / "backbone"), lora=LoRA(rank=4))
    module.load_state_dict(checkpoint(tmp_path / "whole", "best")["state_dict"])
    expected = module.reward_model.eval().score(ITEMS)
    assert plain.score(ITEMS) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-4


def test_frozen_weights_stay_and_further_runs_start_merged(laboratory: Any, tmp_path: Path) -> None:
    assert laboratory("fit", tmp_path / "first", {"trainer.max_steps": 2, "data.ood": {}}) == 0
    first = checkpoint(tmp_path / "first", "best")["state_dict"]
    options = {**SHORT, "init_from": str(tmp_path / "first")}
    assert laboratory("fit", tmp_path / "second", options) == 0
    second = checkpoint(tmp_path / "second")["state_dict"]
    for name, tensor in second.items():
        if "lora_" not in name and ".head." not in name:
            torch.testing.assert_close(tensor, first[name.replace(".base_layer.", ".")], rtol=0, atol=0)
    # adapters of another shape on top of the merged ones, at no distance from them
    model = RewardModel.from_pretrained(str(tmp_path / "second"))
    third = RewardModelingModule("unused", init_from=str(tmp_path / "second"), lora=LoRA(rank=2, dora=True))
    assert third.reward_model.eval().score(ITEMS) == pytest.approx(model.score(ITEMS), abs=1e-5)


def test_another_shape_does_not_go_on(laboratory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert laboratory("fit", run_dir, SHORT) == 0
    for change, said in [
        ({"model.lora.rank": 8}, "the checkpoint has rank 4, "),
        ({"model.lora.alpha": 1.0}, "the config rank 4, alpha 1.0"),
        ({"model.lora": None}, "the config no adapters"),
    ]:
        options = {name: value for name, value in SHORT.items() if "model.lora" not in change or name not in LORA}
        capsys.readouterr()
        assert laboratory("fit", run_dir, {**options, **change, "trainer.max_steps": 6, "ckpt_path": "last"}) == 2
        assert said in complaint(capsys)
    assert checkpoint(run_dir)["global_step"] == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model.lora.rank": 0}, "model.lora.rank is 0"),
        ({"model.lora.targets": ["nothing"]}, "choose from down_proj"),
        ({"model.lora.rank": 2, "model.freeze_backbone": True}, "model.freeze_backbone"),
        ({"model.lora.ranks": 2}, "ranks"),
    ],
)
def test_mistakes_are_one_line(laboratory: Any, tmp_path: Path, capsys: Any, options: Any, said: str) -> None:
    assert laboratory("fit", tmp_path / "run", options) == 2
    assert said in complaint(capsys)
    assert not (tmp_path / "run").exists()


def test_activations_computed_again_give_the_same_gradients(laboratory: Any) -> None:
    gradients = []
    for again in (False, True):
        torch.manual_seed(2)
        model = RewardModelingModule(
            str(laboratory.folder / "backbone"), lora=LoRA(rank=4, dropout=0.3), gradient_checkpointing=again
        ).reward_model
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(3))
        layer = model.backbone.model.layers[0]
        assert getattr(layer, "gradient_checkpointing", False) == again
        torch.manual_seed(5)
        rows = model.encode([[{"role": "user", "content": item["prompt"]}] for item in ITEMS])
        ids = torch.stack([torch.from_numpy(row).long() for row in rows])
        end = torch.full((len(ids),), ids.shape[1] - 1)
        model.backbone(ids, torch.ones_like(ids), end).embeddings.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("lora_A" in name for name in gradients[0])
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


def test_adapters_stay_float32_on_a_bfloat16_backbone(laboratory: Any, tmp_path: Path) -> None:
    assert laboratory("fit", tmp_path / "run", {**SHORT, "trainer.precision": "bf16-true"}) == 0
    state = checkpoint(tmp_path / "run")["state_dict"]
    found = {("lora_" in name or ".head." in name, tensor.dtype) for name, tensor in state.items()}
    assert found == {(True, torch.float32), (False, torch.bfloat16)}
    assert RewardModel.from_pretrained(str(tmp_path / "run")).score(ITEMS)[0] != 0


@pytest.mark.stress
def test_a_run_in_four_bits_goes_on_to_the_bit_and_is_exported(laboratory: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    options = {
        **LORA,
        **FOUR,
        "trainer.val_check_interval": 2,
        "data.ood": {},
        "objective": "aplot",
        "trainer.max_steps": 3,
        "checkpoint_every_n_steps": 1,
    }
    assert laboratory("fit", tmp_path / "whole", options) == 0
    crash = [{"class_path": "tests.training.probes.Interrupt", "init_args": {"step": 2}}]
    with pytest.raises(MemoryError):
        laboratory("fit", tmp_path / "run", {**options, "trainer.callbacks": crash})
    assert laboratory("fit", tmp_path / "run", {**options, "ckpt_path": "last"}) == 0
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    for name in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)
    assert sum(
        tensor.dtype == torch.uint8 and "base_layer.weight" in name for name, tensor in whole["state_dict"].items()
    )
    assert main(["export", "--model", str(tmp_path / "run"), "--output", str(tmp_path / "plain")]) == 0
    rewards = [RewardModel.from_pretrained(str(tmp_path / name)).score(ITEMS) for name in ("run", "plain")]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trainer.strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}}, "are not sharded"),
        ({"trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}]}, "in four bits"),
    ],
    ids=["sharded", "averaged"],
)
def test_four_bits_are_refused_where_they_cannot_be(
    laboratory: Any, tmp_path: Path, capsys: Any, options: Any, said: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    assert laboratory("fit", tmp_path / "run", {**SHORT, **FOUR, **options}) == 2
    assert said in complaint(capsys)
