"""Which metric may select, and which file a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.training.checkpoints import best_checkpoint, can_select, find_checkpoint

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


def test_a_metric_or_set_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"acuracy.*log_loss"):
        can_select("validation/acuracy", SETS)
    with pytest.raises(UserError, match="ood_validation/other"):
        can_select("ood_validation/other/accuracy", SETS)


def test_without_a_validation_set_nothing_selects() -> None:
    with pytest.warns(UserWarning, match="best.ckpt is the last"):
        assert not can_select("validation/accuracy", SETS[1:])


def test_find_checkpoint_takes_names_and_files(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    file.touch()
    assert find_checkpoint("last", tmp_path) == file
    assert find_checkpoint(str(file), tmp_path / "elsewhere") == file
    with pytest.raises(UserError, match=r"best\.ckpt.*--run_dir"):
        find_checkpoint("best", tmp_path)
    with pytest.raises(UserError, match=r"absent\.ckpt"):
        find_checkpoint("absent.ckpt", tmp_path)
