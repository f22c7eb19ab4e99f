"""What fit itself says of a study's configs, and how a run's end is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.launch import Launcher, open_launcher
from aplot_lightning.tuning.overrides import look_up
from aplot_lightning.tuning.slots import Claim
from aplot_lightning.tuning.study import StudyConfig, read_study
from aplot_lightning.tuning.trial import (
    TrialRuns,
    baseline_points,
    check_monitored_set,
    check_space,
    is_single_device,
    read_base,
    shortened,
)
from tests.tuning.studies import study_file

CONF = Path(__file__).parents[2] / "conf"
MARGIN = "model.objective.margin"
SPACE = {
    "share": {
        "float": [0.0, 1.0],
        "sets": {f"{MARGIN}.similarity_weight": "share", f"{MARGIN}.reward_weight": "1 - share"},
    },
    f"{MARGIN}.factor": {"float": [0.0, 2.0]},
}


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with open_launcher(preload=True) as opened:
        yield opened


def study(folder: Path, laboratory: Any, **keys: Any) -> StudyConfig:
    configs = [laboratory.config, str(CONF / "objective" / "aplot.yaml")]
    return read_study(study_file(folder, **{"configs": configs, "space": SPACE, **keys}))


def test_the_base_is_what_fit_reads_with_the_overrides(laboratory: Any, launcher: Launcher, tmp_path: Path) -> None:
    overrides = {f"{MARGIN}.epsilon": 0.25, "data.ood_validation": {"topics": "topics.jsonl"}}
    config = study(tmp_path, laboratory, overrides=overrides, monitor="ood_validation/topics/accuracy")
    base = read_base(config, launcher)
    assert look_up(f"{MARGIN}.epsilon", base) == 0.25
    assert look_up("model.learning_rate", base) == 3e-3
    assert is_single_device(base)
    check_monitored_set(config, base)
    config.monitor = "ood_validation/style/accuracy"  # there as a test set only
    with pytest.raises(UserError, match=r"no set 'style' in data.ood_validation of the base config \(it has topics\)"):
        check_monitored_set(config, base)


def test_baselines_are_found_where_they_are_points(laboratory: Any, launcher: Launcher, tmp_path: Path) -> None:
    bt = [str(CONF / "objective" / "bt.yaml")]
    baselines = {
        "bt": {"values": {f"{MARGIN}.factor": 0.0}},
        "aplot": {},
        "elsewhere": {"configs": bt},
    }
    config = study(tmp_path, laboratory, baselines=baselines)
    points, notes = baseline_points(config, launcher, read_base(config, launcher))
    assert points == {
        "bt": {"share": 0.1, f"{MARGIN}.factor": 0.0},
        "aplot": {"share": 0.1, f"{MARGIN}.factor": 1.0},
    }
    (note,) = notes
    assert note.startswith("baseline elsewhere is no point of the space (share: ")


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"model.learning_rat": {"float": [0.1, 1.0]}}, "learning_rat"),
        ({f"{MARGIN}.epsilo": {"float": [0.1, 1.0]}}, "epsilo"),
        ({"data.batch_size": {"categorical": ["many"]}}, "batch_size.*many"),
        (
            {"model.dropout": {"categorical": [0.1, 0.2]}, "a": {"int": [1, 2], "when": {"model.dropout": 0.2}}},
            "'a' is not accepted",
        ),
    ],
)
def test_a_key_that_fit_does_not_know_is_one_line_before_the_first_trial(
    space: dict[str, Any], said: str, laboratory: Any, launcher: Launcher, tmp_path: Path
) -> None:
    config = study(tmp_path, laboratory, space=space)
    with pytest.raises(UserError, match=f"^space: .*{said}") as caught:
        check_space(config, launcher, read_base(config, launcher))
    assert "\n" not in str(caught.value)


def test_a_good_space_passes(laboratory: Any, launcher: Launcher, tmp_path: Path) -> None:
    config = study(tmp_path, laboratory)
    check_space(config, launcher, read_base(config, launcher))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("trainer", "single"),
    [
        ({"devices": 1}, True),
        ({"devices": [3], "num_nodes": 1}, True),
        ({"devices": "auto", "accelerator": "cpu"}, True),
        ({"devices": "auto", "accelerator": "auto"}, False),
        ({"devices": 2}, False),
        ({"devices": 1, "num_nodes": 2}, False),
    ],
)
def test_which_runs_are_one_process(trainer: dict[str, Any], single: bool) -> None:
    assert is_single_device({"trainer": trainer}) is single


@pytest.mark.parametrize(
    ("code", "log", "died"),
    [
        (-9, "Seed set to 0", True),
        (143, "Seed set to 0", True),
        (-9, "[rank: 1] Child process with PID 7 terminated with code -9. Forcefully terminating", True),
        (-9, "[rank: 1] Child process with PID 7 terminated with code 1. Forcefully terminating", False),
        (1, "aplot: step 3: rank 0 lost another rank, which died or did not answer in time", True),
        (1, "aplot: step 3: the loss is nan", False),
        (2, "aplot: model.dropout: 3 is no share", False),
        (0, "all is well, but nothing was validated", False),
    ],
)
def test_a_death_is_told_from_a_failure(code: int, log: str, died: bool, tmp_path: Path) -> None:
    config = read_study(study_file(tmp_path))
    file = tmp_path / "log.txt"
    file.write_text(f"a line before\n{log}\n\n")
    outcome = TrialRuns(config, {}).outcome(Claim(0, 0, "sample:0", {}), 0, code, file)
    assert outcome.died is died
    assert (outcome.failure is None) is died
    if not died and code:
        assert outcome.failure == f"a line before\n{log}\n(exit code {code}, {file})"
        assert shortened(outcome.failure) == log.removeprefix("aplot: ")


def test_frozen_backbones_are_left_out_of_a_trials_checkpoints(tmp_path: Path) -> None:
    import yaml

    config = read_study(study_file(tmp_path))
    claim = Claim(3, 0, "sample:0", {"tiny.x": 0.5})
    base = {"model": {"freeze_backbone": True}, "trainer": {"devices": 1, "callbacks": None}}
    for each, lean in ((base, True), ({**base, "model": {"freeze_backbone": False}}, False)):
        TrialRuns(config, each).prepare(claim, 0)
        written = yaml.safe_load((tmp_path / "study" / "trials" / "0003" / "trial.yaml").read_text())
        assert ("checkpoint_backbone" in written) is lean
