"""Precisions, optimizers, gradient checkpointing, compilation and weight averaging by the command line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from transformers import AutoConfig, AutoModel

from aplot_lightning import PreferenceDataModule, RewardModel, RewardModelingModule
from aplot_lightning.errors import UserError
from aplot_lightning.model.backbone.blocks import blocks_of
from aplot_lightning.model.configuration import emulation
from aplot_lightning.objectives import Objective, TransportMargin
from aplot_lightning.training.optimization import build_optimizer
from tests.runs import checkpoint, plain_trainer

SHORT = {"trainer.max_steps": 2, "data.ood": {}, "trainer.limit_val_batches": 0}
AVERAGE = "lightning.pytorch.callbacks.EMAWeightAveraging"


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("aplot: "))
    return line


# Precision


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_head_and_losses_stay_float32(laboratory, tmp_path: Path, precision: str, caplog) -> None:
    run_dir = tmp_path / "run"
    options = {**SHORT, "objective": "aplot", "trainer.precision": precision, "trainer.gradient_clip_val": 1.0}
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    assert laboratory("fit", run_dir, options) == 0
    told = "trainer.precision: this processor emulates bfloat16" in caplog.text
    assert told == (emulation("bfloat16", torch.device("cpu")) is not None)
    state = checkpoint(run_dir)["state_dict"]
    dtypes = {key.split(".")[1]: tensor.dtype for key, tensor in state.items()}
    assert dtypes["head"] == torch.float32
    assert dtypes["backbone"] == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert f"precision: {precision}" in (run_dir / "config.yaml").read_text()
    assert RewardModel.from_pretrained(str(run_dir)).score([{"prompt": "who ?", "response": "the cat"}])[0] != 0
    assert laboratory("fit", run_dir, {**options, "trainer.max_steps": 3, "ckpt_path": "last"}) == 0


def test_16_true_is_refused(laboratory, tmp_path: Path, capsys) -> None:
    assert laboratory("fit", tmp_path / "run", {**SHORT, "trainer.precision": "16-true"}) == 2
    assert "bf16-true" in complaint(capsys)
    assert not (tmp_path / "run").exists()


class Watch(L.Callback):
    """Keeps each step's gradients as the optimizer sees them."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        named = dict(module.named_parameters())
        trainer.optimizers[0].register_step_pre_hook(
            lambda *_: self.gradients.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})
        )


def module(laboratory, **options: Any) -> RewardModelingModule:
    torch.manual_seed(1)
    objective = Objective(margin=TransportMargin())
    return RewardModelingModule(str(laboratory.folder / "backbone"), objective, **options)


def data(laboratory, size: int) -> PreferenceDataModule:
    return PreferenceDataModule(str(laboratory.folder / "train.jsonl"), micro_batch_size=size, max_length=64)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_a_gradient_scaler_scales_every_micro_batch_and_clipping_sees_it_unscaled(laboratory, tmp_path: Path) -> None:
    """An inner backward pass that went around the scaler would count 65536 times less than the last one."""
    seen = []
    for size in (32, 8):
        watch = Watch()
        scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
        fitted = plain_trainer(tmp_path, max_steps=2, plugins=[scaled], callbacks=[watch], gradient_clip_val=0.5)
        fitted.fit(module(laboratory), datamodule=data(laboratory, size))
        seen.append(watch.gradients[0])
    exact = Watch()
    fitted = plain_trainer(tmp_path, max_steps=2, callbacks=[exact], gradient_clip_val=0.5)
    fitted.fit(module(laboratory), datamodule=data(laboratory, 32))
    for name, gradient in exact.gradients[0].items():
        for found in (seen[0][name], seen[1][name]):
            assert (found - gradient).norm() < 0.02 * gradient.norm() + 1e-5, name


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_scaler_that_overflows_skips_the_step_by_itself(laboratory, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    trained = module(laboratory)
    before = copy.deepcopy(trained.state_dict())
    fitted = plain_trainer(tmp_path, max_steps=2, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    fitted.fit(trained, datamodule=data(laboratory, 32))
    assert scaler.get_scale() == 2.0**58
    assert trained.not_finite.state_dict() == {"skipped": 2, "in_a_row": 0}
    torch.testing.assert_close(trained.state_dict(), before, rtol=0, atol=0)


# Optimizers


def test_an_optimizer_by_its_class_path_gets_our_groups(laboratory, tmp_path: Path) -> None:
    options = {**SHORT, "model.optimizer": "torch.optim.SGD", "model.optimizer.init_args.momentum": 0.9}
    assert laboratory("fit", tmp_path / "run", options) == 0
    state = checkpoint(tmp_path / "run")["optimizer_states"][0]
    assert all(set(value) == {"momentum_buffer"} for value in state["state"].values())
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.01, 0.0]
    assert {group["initial_lr"] for group in state["param_groups"]} == {3e-3}


def test_an_optimizer_that_cannot_be_made_is_a_mistake(laboratory, tmp_path: Path, capsys) -> None:
    assert laboratory("fit", tmp_path / "run", {**SHORT, "model.optimizer": "torch.optim.LBFGS"}) == 2
    assert "model.optimizer" in complaint(capsys)
    assert laboratory("fit", tmp_path / "run", {**SHORT, "model.optimizer": "torch.optim.Adaam"}) == 2
    assert "model.optimizer" in complaint(capsys)


@pytest.mark.parametrize(("name", "value"), [("lr", 0.5), ("weight_decay", 0.2)])
def test_an_optimizer_with_a_learning_rate_of_its_own_is_a_mistake(name: str, value: float) -> None:
    key = {"lr": "model.learning_rate", "weight_decay": "model.weight_decay"}[name]
    used = {"lr": 1e-5, "weight_decay": 0.1}

    def build(**given: float) -> torch.optim.Optimizer:
        parameters = [nn.Parameter(torch.zeros(2, 2))]
        return build_optimizer(parameters, lambda groups: torch.optim.SGD(groups, **given), *used.values(), False)

    with pytest.raises(UserError, match=rf"its {name} {value} is not used, {key} \({used[name]:g}\) is"):
        build(**{name: value})
    assert build(**{name: used[name]}).param_groups[0][name] == used[name]  # no harm in saying it twice


# Blocks


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "deberta-v2", "modernbert"])
def test_blocks_are_the_layers_of_the_architecture(family: str) -> None:
    """The oracle: the weights that differ only in a number, which count as many as there are layers."""
    config = AutoConfig.for_model(family)
    config.num_hidden_layers = 3
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    blocks = blocks_of(model)
    assert len(blocks) == 3
    assert len({type(block) for block in blocks}) == 1
    inside = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layer" in f".{name}" or name.startswith("h."))
    assert inside == layers


def test_a_model_without_a_list_has_no_blocks() -> None:
    assert blocks_of(nn.Linear(2, 2)) == []


def test_gradient_checkpointing_runs_blocks_again_and_changes_nothing(laboratory, tmp_path: Path) -> None:
    options = {**SHORT, "objective": "aplot", "model.dropout": 0.1}
    for name, wanted in (("plain", False), ("again", True)):
        assert laboratory("fit", tmp_path / name, {**options, "model.gradient_checkpointing": wanted}) == 0
    plain, again = (checkpoint(tmp_path / name)["state_dict"] for name in ("plain", "again"))
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-6)
    calls: list[bool] = []
    for wanted in (False, True):
        model = module(laboratory, gradient_checkpointing=wanted)
        (block,) = blocks_of(model.reward_model.backbone.model)
        block.self_attn.register_forward_pre_hook(lambda *_: calls.append(True))
        batch = _batch(model)
        model.reward_model.train()(batch).rewards.sum().backward()
        assert len(calls) == (3 if wanted else 1)  # once, and after that twice


def _batch(model: RewardModelingModule) -> Any:
    from aplot_lightning.model.scoring import unpaired_batch

    return unpaired_batch(model.reward_model.encode([[{"role": "user", "content": "who ?"}]]), 0)


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's own look
def test_a_compiled_model_trains_as_the_plain_one(laboratory, tmp_path: Path) -> None:
    options = {**SHORT, "model.optimizer": "torch.optim.SGD"}
    for name, wanted in (("plain", False), ("compiled", True)):
        assert laboratory("fit", tmp_path / name, {**options, "model.compile": wanted}) == 0
    plain, compiled = (checkpoint(tmp_path / name)["state_dict"] for name in ("plain", "compiled"))
    assert compiled.keys() == plain.keys()
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)


# Weight averaging


def test_averaged_weights_select_are_kept_and_go_on_to_the_bit(laboratory, tmp_path: Path) -> None:
    """Oracle: the exponential average of the weights that the run's own checkpoints hold, step by step."""
    average = {"class_path": AVERAGE, "init_args": {"decay": 0.8, "use_buffers": False}}
    options = {
        "objective": "aplot",
        "model.dropout": 0.1,
        "data.ood": {},
        "trainer.max_steps": 6,
        "trainer.val_check_interval": 3,
        "checkpoint_every_n_steps": 1,
        "checkpoint_keep": 9,
    }
    undisturbed = tmp_path / "undisturbed"
    assert laboratory("fit", undisturbed, {**options, "trainer.callbacks": [average]}) == 0
    steps = [checkpoint(undisturbed, f"step-{step:08}") for step in range(1, 6)] + [checkpoint(undisturbed)]
    key = "reward_model.head.weight"
    expected = steps[0]["current_model_state"][key]  # the first update copies
    for step in steps[1:]:
        expected = 0.8 * expected + 0.2 * step["current_model_state"][key]
    last = steps[-1]
    torch.testing.assert_close(last["state_dict"][key], expected, rtol=0, atol=1e-6)
    assert (last["current_model_state"][key] - expected).abs().max() > 1e-4
    best = checkpoint(undisturbed, "best")
    model = RewardModel.from_pretrained(str(undisturbed))
    torch.testing.assert_close(model.head.weight.detach(), best["state_dict"][key], rtol=0, atol=0)
    crash = {"class_path": "tests.training.probes.Interrupt", "init_args": {"step": 4}}
    with pytest.raises(MemoryError):
        laboratory("fit", tmp_path / "run", {**options, "trainer.callbacks": [average, crash]})
    assert laboratory("fit", tmp_path / "run", {**options, "trainer.callbacks": [average], "ckpt_path": "last"}) == 0
    resumed = checkpoint(tmp_path / "run")
    for name in ("state_dict", "current_model_state", "averaging_state"):
        torch.testing.assert_close(resumed[name], last[name], rtol=0, atol=0)
    metrics = [(folder / "metrics.json").read_text().split('"train"')[0] for folder in (undisturbed, tmp_path / "run")]
    assert metrics[0] == metrics[1]
    # the figures are those of the averaged weights
    assert laboratory("test", undisturbed, {**options, "ckpt_path": "best"}) == 0
    assert (undisturbed / "metrics.json").read_text().split('"train"')[0] == metrics[0]


QUEUE = {"objective": "aplot", "model.objective.margin.support": "queue", "model.objective.margin.queue_size": 8}
SHARDED = {"trainer.strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({**SHARDED, "trainer.devices": 2, "trainer.callbacks": AVERAGE}, "which FSDP2 shards"),
        ({**QUEUE, "trainer.callbacks": AVERAGE}, "holds a queue"),
        ({**SHARDED, "trainer.devices": 2, "trainer.precision": "16-mixed"}, "trainer"),
        ({"trainer.strategy": "fsdp"}, "conf/trainer/fsdp.yaml"),
        ({"trainer.strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}}, "conf/trainer/fsdp.yaml"),
        ({"trainer.strategy": "deepspeed_stage_2"}, "DeepSpeed"),
        ({"trainer.strategy": "ddp_spawn"}, "ddp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_with_the_reason(
    laboratory, tmp_path: Path, capsys, options: dict[str, Any], said: str
) -> None:
    options = {key: [{"class_path": value}] if key == "trainer.callbacks" else value for key, value in options.items()}
    assert laboratory("fit", tmp_path / "run", {**SHORT, **options}) == 2
    assert said in complaint(capsys)
    assert not (tmp_path / "run").exists()
