"""The outline of a model beside the model: the same tokenizer and positions, and no weights touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from aplot_lightning.errors import UserError
from aplot_lightning.model.outline import read_outline
from aplot_lightning.model.reward_model import RewardModel

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
KINDS = {
    "llama": {**SIZES, "max_position_embeddings": 32},
    "bert": {**SIZES, "max_position_embeddings": 32},
    "roberta": {**SIZES, "max_position_embeddings": 34, "pad_token_id": 1},
    "gpt2": GPT2,
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "word_embed_proj_dim": 16,
    }
    | {"max_position_embeddings": 40},
}
LIMITS = {"llama": None, "bert": 32, "roberta": 32, "gpt2": 24, "opt": 40}


def folder_of(kind: str, folder: Path) -> str:
    tokenizer = RewardModel.from_backbone("world-decoder").tokenizer
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer) + 8, num_labels=1, **KINDS[kind])
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    name = folder_of(kind, tmp_path)
    outline, model = read_outline(name, "model.backbone"), RewardModel.from_backbone(name)
    assert outline.position_limit == model.backbone.position_limit == LIMITS[kind]
    assert outline.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert outline.tokenizer.chat_template == model.tokenizer.chat_template


def test_weights_are_not_read(tmp_path: Path) -> None:
    name = folder_of("gpt2", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    before = torch.random.get_rng_state()
    assert read_outline(name, "model.backbone").position_limit == 24
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(UserError):
        RewardModel.from_backbone(name)


def test_a_checkpoint_carries_its_outline(tmp_path: Path) -> None:
    model = RewardModel.from_backbone(folder_of("gpt2", tmp_path / "backbone"), max_length=20)
    state = {f"reward_model.{name}": tensor for name, tensor in model.state_dict().items()}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    torch.save({"state_dict": state, "reward_model": model.describe()}, path)
    (tmp_path / "backbone").rename(tmp_path / "gone")
    for name in (path, tmp_path / "run"):
        outline = read_outline(str(name), "model.backbone")
        assert outline.position_limit == 24
        assert outline.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    torch.save({"state_dict": state, "reward_model": {**model.describe(), "config": {}}}, path)
    with pytest.raises(UserError, match="damaged"):
        read_outline(str(path), "model.backbone")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_outline(str(tmp_path / "nobody"), "model.backbone")
    name = folder_of("gpt2", tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    (tmp_path / "small" / "config.json").write_text(json.dumps({**config, "vocab_size": 5}))
    with pytest.raises(UserError, match="embeds 5"):
        read_outline(name, "model.backbone")
