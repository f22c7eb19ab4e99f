from __future__ import annotations

import json

import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.model import locate
from aplot_lightning.model.locate import built_in_names, locate_model


def write(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_run_is_its_best_checkpoint_else_its_last(tmp_path):
    last = write(tmp_path / "run/checkpoints/last.ckpt")
    assert locate_model(str(tmp_path / "run"), "model").source == str(last)
    best = write(tmp_path / "run/checkpoints/best.ckpt")
    assert locate_model(str(tmp_path / "run"), "model").source == str(best)
    place = locate_model(str(best), "model")
    assert (place.kind, place.source) == ("checkpoint", str(best))


def test_folders(tmp_path):
    write(tmp_path / "m/config.json")
    assert locate_model(str(tmp_path / "m"), "model").kind == "architecture"
    write(tmp_path / "m/pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.backbone: .* pytorch_model\.bin, a pickle"):
        locate_model(str(tmp_path / "m"), "model.backbone")
    write(tmp_path / "m/model.safetensors")
    assert locate_model(str(tmp_path / "m"), "model").kind == "folder"
    with pytest.raises(UserError, match=r"model\.backbone: the folder .* holds no model: neither checkpoints/best"):
        locate_model(str(tmp_path), "model.backbone")


@pytest.mark.parametrize("name", ["bert-base-uncased", "HuggingFaceTB/SmolLM2-135M"])
def test_hub_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate_model(name, "model").kind == "hub"


@pytest.mark.parametrize("name", ["/no/such", "./nothing", "a/b/c", "runs/last.ckpt", "with space", "", "../up"])
def test_what_can_be_no_hub_name_does_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"does not exist; give a run directory|no model is named; give") as caught:
        locate_model(name, "model.backbone")
    assert str(caught.value).startswith("model.backbone: ")
    assert "\n" not in str(caught.value)


def test_built_in_names_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locate, "ASSETS", tmp_path / "assets")
    write(tmp_path / "assets/tiny/config.json")
    write(tmp_path / "tiny/config.json")
    assert built_in_names() == ["tiny"]
    assert locate_model("tiny", "model").source == str(tmp_path / "assets/tiny")
    assert locate_model("./tiny", "model").source == "tiny"


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../outside.safetensors"}, r"names weights outside its folder \(\.\./outside\.safetensors\)"),
        ({"a": "/etc/passwd"}, r"names weights outside its folder \(/etc/passwd\)"),
        ("text", "is no index of weights"),
    ],
)
def test_an_index_that_leads_outside_is_not_followed(tmp_path, weight_map, message):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        locate_model(str(tmp_path), "--model")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert locate_model(str(tmp_path), "--model").kind == "folder"


def test_an_adapter_is_not_followed_to_its_base(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(UserError, match="is an adapter"):
        locate_model(str(tmp_path), "--model")
