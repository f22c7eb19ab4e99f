from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig

from aplot_lightning.errors import UserError
from aplot_lightning.model.configuration import (
    config_from_dict,
    config_to_dict,
    emulation,
    prepare_config,
    read_config,
    torch_dtype,
)
from aplot_lightning.model.locate import ModelPlace


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", ["hidden_dropout_prob", "attention_probs_dropout_prob"]),
        ("gpt2", ["resid_pdrop", "embd_pdrop", "attn_pdrop"]),
        ("distilbert", ["dropout", "attention_dropout", "seq_classif_dropout"]),
        ("deberta-v2", ["hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout"]),
        ("llama", ["attention_dropout"]),
    ],
)
def test_every_dropout_is_set(family, names):
    config = AutoConfig.for_model(family)
    prepare_config(config, attention=None, dropout=0.25)
    assert {name: getattr(config, name) for name in names} == dict.fromkeys(names, 0.25)
    prepare_config(config, attention=None, dropout=None)
    assert getattr(config, names[0]) == 0.25
    assert (config.num_labels, getattr(config, "use_cache", False)) == (1, False)


def test_layers_are_never_dropped():
    config = AutoConfig.for_model("opt", layerdrop=0.3)
    prepare_config(config, attention=None, dropout=0.1)
    assert (config.layerdrop, config.dropout) == (0.0, 0.1)


@pytest.mark.parametrize("family", ["bert", "gpt2", "gemma3", "deberta-v2"])
def test_config_as_primitives_and_back(family):
    config = AutoConfig.for_model(family)
    prepare_config(config, attention="eager", dropout=0.1)
    values = config_to_dict(config)
    again = config_from_dict(json.loads(json.dumps(values)))
    assert type(again) is type(config)
    assert config_to_dict(again) == values


def test_the_names_of_other_peoples_code_are_left_out():
    config = AutoConfig.for_model("bert", auto_map={"AutoModel": "modeling.Evil"})
    assert "auto_map" not in config_to_dict(config)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OfflineModeIsEnabled("long\nstory"), "HF_HUB_OFFLINE is set"),
        (LocalEntryNotFoundError("none"), "its repository has no config.json"),
        (ConnectionError("Name or service not known\nand more"), "it cannot be reached: Name or service not known"),
    ],
)
def test_the_hub_is_asked_once(monkeypatch, error, reason):
    asked = []

    def ask(url, **options):
        asked.append((url, options["timeout"]))
        raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    with pytest.raises(UserError) as caught:
        read_config(ModelPlace("nobody/nothing", "hub", "nobody/nothing"), "model.backbone")
    assert str(caught.value).startswith("model.backbone: 'nobody/nothing' is not on this disk")
    assert f"({reason})" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert asked == [("https://huggingface.co/nobody/nothing/resolve/main/config.json", 10)]


def test_mistakes():
    config = AutoConfig.for_model("bert")
    with pytest.raises(UserError, match=r"model\.attention 'someone/kernel' is unknown: choose one of eager, sdpa"):
        prepare_config(config, attention="someone/kernel", dropout=0.0)
    with pytest.raises(UserError, match=r"model\.dropout is 1\.0"):
        prepare_config(config, attention=None, dropout=1.0)
    with pytest.raises(UserError, match="dtype 'int8' is unknown: choose one of float64, float32"):
        torch_dtype("int8")


def test_half_precisions_are_emulated_where_vectors_are_short():
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        pytest.skip(f"what {capability} means for bfloat16 is not known here")
    assert (emulation("bfloat16", torch.device("cpu")) is not None) == (capability != "AVX512")
    assert emulation("float32", torch.device("cpu")) is None
    assert emulation("bfloat16", torch.device("cuda")) is None
