from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from aplot_lightning.errors import UserError
from aplot_lightning.model.backbone import build_backbone, load_backbone, pool
from aplot_lightning.model.configuration import prepare_config
from aplot_lightning.model.locate import locate_model

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def config_of(family: str, **values):
    config = AutoConfig.for_model(family, **{**SMALL, "vocab_size": 20, **values})
    prepare_config(config, attention=None, dropout=0.0)
    return config


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pooling_against_a_loop(lengths, seed):
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(len(lengths), max(lengths), 3)).astype(np.float32)
    mask = (np.arange(max(lengths))[None] < np.asarray(lengths)[:, None]).astype(np.int64)
    end = np.asarray(lengths) - 1
    mean, last = [], []
    for row, length in enumerate(lengths):
        mean.append(sum(states[row, place].astype(np.float64) for place in range(length)) / length)
        last.append(states[row, length - 1])
    tensors = torch.from_numpy(states), torch.from_numpy(mask), torch.from_numpy(end)
    np.testing.assert_allclose(pool(*tensors, "mean"), mean, atol=1e-6)
    np.testing.assert_array_equal(pool(*tensors, "last"), last)


def test_pooling_accumulates_in_float32():
    states = torch.full((1, 3000, 1), 1.0, dtype=torch.bfloat16)
    mask = torch.ones(1, 3000, dtype=torch.int64)
    pooled = pool(states, mask, torch.tensor([2999]), "mean")
    assert pooled.dtype == torch.float32
    assert pooled.item() == 1.0  # a bfloat16 sum stops at 256


@pytest.mark.parametrize(
    ("family", "limit"), [("bert", 40), ("roberta", 38), ("opt", 40), ("gpt2", 40), ("llama", None)]
)
def test_position_limit(family, limit):
    sizes = {"roberta": {"pad_token_id": 1}, "opt": {"ffn_dim": 16}, "gpt2": {"n_head": 2}}.get(family, {})
    backbone, _ = build_backbone(config_of(family, max_position_embeddings=40, **sizes), "auto", torch.float32)
    assert backbone.position_limit == limit
    if limit is not None:  # the most that the architecture takes, and not one token less
        ids = torch.full((1, limit), 5)
        backbone(ids, torch.ones_like(ids), torch.tensor([limit - 1]))
        longer = torch.full((1, limit + 1), 5)
        with pytest.raises((IndexError, RuntimeError)):
            backbone(longer, torch.ones_like(longer), torch.tensor([limit]))


def test_a_model_without_a_classification_class_takes_the_last_token():
    config = config_of("mamba2", num_heads=4, head_dim=8, state_size=4, n_groups=1)
    backbone, head = build_backbone(config, "auto", torch.float32)
    assert (backbone.pooling, head.bias, head.in_features) == ("last", False, 16)


def test_encoder_pooled_by_mean_has_no_idle_pooler():
    backbone, head = build_backbone(config_of("bert"), "mean", torch.float32)
    ids = torch.randint(20, (2, 5))
    backbone(ids, torch.ones_like(ids), torch.tensor([4, 4])).embeddings.sum().backward()
    assert head.weights is None
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("family", "pooling", "message"),
    [
        ("llama", "classification", "llama is a decoder"),
        ("mamba2", "classification", "no classification path"),
        ("xlnet", "auto", "reads padding; set it to last or mean"),
        ("t5", "auto", "encoder-decoder"),
        ("bert", "first", "choose one of auto, last, classification, mean"),
    ],
)
def test_what_does_not_suit_a_backbone_is_refused(family, pooling, message):
    sizes = {
        "mamba2": {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1},
        "xlnet": {"d_model": 16, "n_head": 2, "n_layer": 1, "d_inner": 16},
        "t5": {"d_model": 16, "d_ff": 16, "num_heads": 2, "num_layers": 1, "d_kv": 8},
    }
    values = sizes.get(family)
    config = config_of(family) if values is None else AutoConfig.for_model(family, vocab_size=20, **values)
    prepare_config(config, attention=None, dropout=0.0)
    with pytest.raises(UserError, match=message):
        build_backbone(config, pooling, torch.float32)


def load(folder, key="model.backbone"):
    place = locate_model(str(folder), key)
    config = AutoConfig.from_pretrained(folder)
    prepare_config(config, attention=None, dropout=0.0)
    return load_backbone(place, config, "auto", torch.float32, key)


def test_another_number_of_labels_is_no_head(saved):
    assert load(saved("bert", 1))[1].weights.keys() == {"weight", "bias"}
    assert load(saved("bert", 3))[1].weights is None
    assert load(saved("llama", 3))[1].weights is None


def test_a_folder_whose_weights_do_not_fit_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 50}))
    with pytest.raises(UserError, match=r"model\.backbone: the weights of .* do not have the sizes"):
        load(folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.warns(UserWarning, match="9 of 29 backbone weights are not in .* start at random"):
        load(folder)


def test_the_weights_of_another_model_are_refused(saved, tmp_path):
    folder = shutil.copytree(saved("llama"), tmp_path / "model")
    shutil.copy(saved("bert") / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(UserError, match="hold none of the weights of a LlamaForSequenceClassification"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_cut_weights_are_refused(saved, tmp_path, keep):
    folder = shutil.copytree(saved("llama"), tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(UserError, match=r"model\.backbone: the model in .* could not be read") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
