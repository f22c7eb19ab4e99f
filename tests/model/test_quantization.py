"""Four bits against bitsandbytes and PEFT around what Transformers itself quantises, and in checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from aplot_lightning.data.batching import pad_rows
from aplot_lightning.data.comparisons import conversation_of
from aplot_lightning.errors import UserError
from aplot_lightning.model.lora import LoRA
from aplot_lightning.model.quantization import Quantization, dequantized, is_quantized, scale_names
from aplot_lightning.model.reward_model import RewardModel
from aplot_lightning.types import Batch, Pairs

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
NOTHING = Pairs(*[torch.zeros(0, dtype=torch.int64)] * 2)
KINDS = [Quantization(kind, double, "float32") for kind in ("nf4", "fp4") for double in (True, False)]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of a faster kernel that is not installed


@pytest.fixture(scope="session")
def wide(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder whose layers have whole blocks of weights in each row."""
    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(saved("llama"), hidden_size=64, intermediate_size=128, head_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(saved("llama")).save_pretrained(folder)
    return folder


def adapted(folder: Path, quantization: Quantization | None, **options: Any) -> RewardModel:
    torch.manual_seed(4)
    model = RewardModel.from_backbone(str(folder))
    model.add_lora(LoRA(rank=3, quantization=quantization, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def gradients(model: RewardModel, items: list[dict]) -> dict[str, Tensor]:
    rows = model.encode([conversation_of(item["prompt"], item["response"]) for item in items])
    model.train()(Batch(*pad_rows(rows, 0), NOTHING)).rewards.square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_rewards_and_gradients_are_those_of_plain_layers_with_the_rounded_weights(wide, items, options) -> None:
    model = adapted(wide, options)
    plain = adapted(wide, None)
    for name, layer in model.backbone.model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            whole = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            weight = plain.backbone.model.get_submodule(name).weight
            assert 0 < (weight - whole).norm() < 0.25 * weight.norm()
            weight.data.copy_(whole)
    np.testing.assert_allclose(model.score(items), plain.score(items), rtol=0, atol=1e-5)
    ours, theirs = gradients(model, items), gradients(plain, items)
    assert any("lora_A" in name for name in ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_only_the_layers_beside_adapters_are_quantised_and_they_like_transformers_own(wide) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    reference = AutoModelForSequenceClassification.from_pretrained(wide, quantization_config=config)
    theirs = {name: tensor for name, tensor in reference.state_dict().items() if "q_proj.weight" in name}
    model = adapted(wide, Quantization(), targets=["q_proj"])
    ours = {
        name.removeprefix("backbone.").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if "q_proj.base_layer.weight" in name
    }
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)
    kinds = {name for name, layer in model.backbone.model.named_modules() if isinstance(layer, bnb.nn.Linear4bit)}
    assert {name.rpartition("self_attn.")[2] for name in kinds} == {"q_proj.base_layer"}


@pytest.mark.parametrize("kind", [{}, {"rslora": True}, {"dora": True}], ids=str)
def test_a_checkpoint_is_read_as_the_plain_model_and_goes_on_as_it_was(wide, items, tmp_path: Path, kind) -> None:
    model = adapted(wide, Quantization(compute_dtype="float32"), **kind)
    expected = model.score(items)
    state = {f"reward_model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "reward_model": model.describe(), "global_step": 1}, tmp_path / "a.ckpt")
    read = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert not any(
        tensor.dtype == torch.uint8 for tensor in RewardModel.from_pretrained(str(tmp_path / "a.ckpt")).parameters()
    )
    found = RewardModel.from_pretrained(str(tmp_path / "a.ckpt")).score(items)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    again = RewardModel.from_description(read["reward_model"])
    assert again.eval().score(items) != expected
    again.load_state_dict(model.state_dict())
    assert again.eval().score(items) == expected


def test_training_after_an_evaluation_still_reaches_the_first_layer(wide, items) -> None:
    """On CPUs with bfloat16 bitsandbytes would repack weights in evaluation, without a backward pass."""
    model = adapted(wide, Quantization())
    first = gradients(model, items)
    model.eval().score(items)
    model.zero_grad()
    torch.testing.assert_close(gradients(model, items), first, rtol=0, atol=0)


def test_what_belongs_to_four_bits_in_a_state_dict(wide) -> None:
    state = adapted(wide, Quantization()).state_dict()
    weights = [name for name in state if name.endswith("base_layer.weight")]
    assert len(weights) == 7 * len({name.split(".")[3] for name in weights})
    assert all(is_quantized(state, name) for name in weights)
    assert not is_quantized(state, "backbone.model.embed_tokens.weight")
    assert scale_names(state) == {name for name in state if ".base_layer.weight." in name}
    assert dequantized(state, weights[0]).dtype == torch.float32


def test_mistakes_are_one_line(saved) -> None:
    with pytest.raises(UserError, match="kind is 'int4'"):
        Quantization("int4")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="compute_dtype is 'int8'"):
        Quantization(compute_dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="keeps its weights transposed"):
        adapted(saved("gpt2"), Quantization())
    with pytest.raises(UserError, match=r"self_attn\.q_proj has 32 inputs, no multiple of 64"):
        adapted(saved("llama"), Quantization())


def test_without_bitsandbytes_the_extra_is_named(wide, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"needs bitsandbytes .*aplot-lightning\[qlora\]"):
        RewardModel.from_backbone(str(wide)).add_lora(LoRA(quantization=Quantization()))
