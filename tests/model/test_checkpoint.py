from __future__ import annotations

import os
import pickle

import pytest
import torch

from aplot_lightning.errors import UserError
from aplot_lightning.model.checkpoint import read_checkpoint


class Touch:
    """Unpickled by plain pickle, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.ckpt"
    state = {"reward_model.head.weight": torch.ones(1, 3), "objective.scale": torch.ones(1)}
    torch.save({"state_dict": state, "reward_model": {"format": 1}, "global_step": 3}, path)
    return path


def test_description_and_weights(written):
    description, state = read_checkpoint(str(written), "model")
    assert description == {"format": 1}
    assert list(state) == ["head.weight"]


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_hostile_file_is_refused_and_never_run(tmp_path, save):
    path, witness = tmp_path / "evil.ckpt", tmp_path / "witness"
    save({"state_dict": Touch(witness), "reward_model": {}}, path)
    with pytest.raises(UserError, match=r"--model: .*evil\.ckpt (holds an object other than|is not a whole)") as caught:
        read_checkpoint(str(path), "--model")
    assert not witness.exists()
    assert "\n" not in str(caught.value)
    with path.open("rb") as file, pytest.raises(Exception):  # noqa: B017, PT011 - the file would be run by others
        torch.load(file, weights_only=True)


def test_a_hostile_object_is_named(tmp_path):
    torch.save({"x": Touch(tmp_path / "witness")}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"\(\w+\.system\); it is not read, because that could run code"):
        read_checkpoint(str(tmp_path / "evil.ckpt"), "model")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.98])
def test_a_cut_file_is_named(written, share):
    content = written.read_bytes()
    written.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"model: .*a\.ckpt is not a whole checkpoint") as caught:
        read_checkpoint(str(written), "model")
    assert "\n" not in str(caught.value)


def test_files_of_others(tmp_path):
    path = tmp_path / "a.ckpt"
    for content in ({"state_dict": {}}, {"reward_model": {"format": 1}}, torch.ones(2)):
        torch.save(content, path)
        with pytest.raises(UserError, match="holds no reward model"):
            read_checkpoint(str(path), "model")
    torch.save({"state_dict": {}, "reward_model": {"format": 2}}, path)
    with pytest.raises(UserError, match="is of format 2, this version reads 1"):
        read_checkpoint(str(path), "model")
    path.write_text("not a checkpoint\n")
    with pytest.raises(UserError, match="is not a whole checkpoint"):
        read_checkpoint(str(path), "model")
