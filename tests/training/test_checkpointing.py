"""Which metric may select, and which file a name means."""

from __future__ import annotations

import errno
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.training.checkpointing import AtomicCheckpointIO, best_checkpoint, can_select, find_checkpoint

SETS = ["validation", "id", "ood/hard", "ood_validation/topics"]


@pytest.mark.parametrize("monitor", ["id/accuracy", "ood/hard/accuracy", "ood_mean/accuracy", "train/loss", "accuracy"])
def test_test_sets_may_not_select(tmp_path: Path, monitor: str) -> None:
    with pytest.raises(UserError, match="monitor") as error:
        best_checkpoint(tmp_path, monitor)
    assert monitor in str(error.value)


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("validation/accuracy", "max"),
        ("validation/log_loss", "min"),
        ("ood_validation/topics/ece", "min"),
        ("ood_validation/topics/hard_accuracy", "max"),
    ],
)
def test_the_better_direction_follows_from_the_metric(tmp_path: Path, monitor: str, mode: str) -> None:
    callback = best_checkpoint(tmp_path, monitor)
    assert (callback.monitor, callback.mode) == (monitor, mode)
    assert can_select(monitor, SETS)


def test_an_unknown_metric_or_set_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"acuracy.*log_loss"):
        best_checkpoint(tmp_path, "validation/acuracy")
    with pytest.raises(UserError, match="ood_validation/other"):
        can_select("ood_validation/other/accuracy", SETS)


def test_without_a_validation_set_nothing_selects() -> None:
    with pytest.warns(UserWarning, match="best.ckpt is the last"):
        assert not can_select("validation/accuracy", SETS[1:])


# Files


@pytest.fixture
def kept(finished_run: Path, tmp_path: Path) -> Path:
    """A run directory with last.ckpt (step 18), best.ckpt, and the step before the last."""
    return shutil.copytree(finished_run / "checkpoints", tmp_path / "run" / "checkpoints").parent


def test_find_checkpoint_takes_names_and_files(kept: Path, tmp_path: Path) -> None:
    file = kept / "checkpoints" / "last.ckpt"
    assert find_checkpoint("last", kept) == file
    assert find_checkpoint(str(file), tmp_path / "elsewhere") == file
    with pytest.raises(UserError, match=r"best\.ckpt.*--run_dir"):
        find_checkpoint("best", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"absent\.ckpt"):
        find_checkpoint("absent.ckpt", tmp_path / "elsewhere")


@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered(kept: Path, damage: str) -> None:
    file = kept / "checkpoints" / "last.ckpt"
    content = file.read_bytes()
    middle = len(content) // 2
    broken = {
        "cut": content[:middle],
        "overwritten": content[:middle] + bytes(1000) + content[middle + 1000 :],
        "empty": b"",
        "text": b"no checkpoint",
    }
    file.write_bytes(broken[damage])
    with pytest.raises(UserError) as error:
        find_checkpoint("last", kept)
    former = kept / "checkpoints" / "step-00000017.ckpt"
    assert str(file) in str(error.value)
    assert f"--ckpt_path {former}" in str(error.value)
    assert "\n" not in str(error.value)
    assert find_checkpoint(str(former), kept) == former
    former.write_bytes(b"")
    step = torch.load(kept / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    with pytest.raises(UserError, match=rf"step {step} is whole: --ckpt_path .*best\.ckpt"):
        find_checkpoint("last", kept)


def test_a_missing_last_checkpoint_offers_another(kept: Path) -> None:
    (kept / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(UserError, match=r"no checkpoint at .*last\.ckpt.*step 17 is whole"):
        find_checkpoint("last", kept)


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["zip", "plain"])
def test_a_hostile_checkpoint_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    file, touched = tmp_path / "hostile.ckpt", tmp_path / "touched"
    if form == "zip":
        torch.save({"state_dict": {}, "reward_model": {}, "extra": Touch(touched)}, file)
    else:
        file.write_bytes(pickle.dumps(Touch(touched)))
    with pytest.raises(UserError, match=r"hostile\.ckpt"):
        find_checkpoint(str(file), tmp_path)
    assert not touched.exists()


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of a write leaves the former file and nothing else."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1, "weights": torch.ones(5)}, path)
    former = path.read_bytes()

    def full(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match=r"step 2: .*last\.ckpt.*No space left.*previous checkpoint is whole"):
            AtomicCheckpointIO().save_checkpoint({"global_step": 2}, path)
    assert path.read_bytes() == former
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    AtomicCheckpointIO().save_checkpoint({"global_step": 3}, path)
    assert torch.load(path, weights_only=True)["global_step"] == 3


def test_other_errors_of_writing_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):  # a local object cannot be pickled
        AtomicCheckpointIO().save_checkpoint({"global_step": 1, "f": lambda: None}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []
