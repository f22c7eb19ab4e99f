"""What fit itself says of a study's configs, and how a run's end is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.config_keys import look_up
from aplot_lightning.tuning.storage import FAILURE_FILE
from aplot_lightning.tuning.study import StudyConfig, read_study
from aplot_lightning.tuning.trial import (
    TrialRuns,
    baseline_points,
    check_monitored_set,
    check_space,
    read_base,
    shortened,
)
from aplot_lightning.tuning.trial_queue import Claim
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


def study(folder: Path, laboratory: Any, **keys: Any) -> StudyConfig:
    configs = [laboratory.config, str(CONF / "objective" / "aplot.yaml")]
    return read_study(study_file(folder, **{"configs": configs, "space": SPACE, **keys}))


def test_the_base_is_what_fit_reads_with_the_overrides(laboratory: Any, tmp_path: Path) -> None:
    overrides = {f"{MARGIN}.epsilon": 0.25, "data.ood_validation": {"topics": "topics.jsonl"}}
    config = study(tmp_path, laboratory, overrides=overrides, monitor="ood_validation/topics/accuracy")
    base = read_base(config)
    assert look_up(f"{MARGIN}.epsilon", base) == 0.25
    assert look_up("model.learning_rate", base) == 3e-3
    check_monitored_set(config, base)
    config.monitor = "ood_validation/style/accuracy"  # there as a test set only
    with pytest.raises(UserError, match=r"no set 'style' in data.ood_validation of the base config \(it has topics\)"):
        check_monitored_set(config, base)


def test_baselines_are_found_where_they_are_points(laboratory: Any, tmp_path: Path) -> None:
    bt = [str(CONF / "objective" / "bt.yaml")]
    baselines = {
        "bt": {"values": {f"{MARGIN}.factor": 0.0}},
        "aplot": {},
        "elsewhere": {"configs": bt},
    }
    config = study(tmp_path, laboratory, baselines=baselines)
    points, notes = baseline_points(config, read_base(config))
    assert points == {
        "bt": {"share": 0.1, f"{MARGIN}.factor": 0.0},
        "aplot": {"share": 0.1, f"{MARGIN}.factor": 1.0},
    }
    (note,) = notes
    assert note.startswith("baseline elsewhere is not a point of the space (share: ")


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
    space: dict[str, Any], said: str, laboratory: Any, tmp_path: Path
) -> None:
    config = study(tmp_path, laboratory, space=space)
    with pytest.raises(UserError, match=f"^space: .*{said}") as caught:
        check_space(config, read_base(config))
    assert "\n" not in str(caught.value)


def test_a_good_space_passes(laboratory: Any, tmp_path: Path) -> None:
    config = study(tmp_path, laboratory)
    check_space(config, read_base(config))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("code", "failure", "died"),
    [
        (-9, None, True),
        (143, None, True),
        (-9, {"lost_rank": False}, False),  # Lightning killed the first rank because another one failed
        (1, {"lost_rank": True}, True),
        (1, None, False),
        (2, None, False),
        (0, None, False),  # but nothing was validated
    ],
)
def test_a_run_that_was_killed_is_not_a_failure(
    code: int, failure: dict[str, bool] | None, died: bool, tmp_path: Path
) -> None:
    runs, claim = TrialRuns(read_study(study_file(tmp_path)), {}), Claim(0, "sample:0", {})
    log = runs.run_dir(claim, 0) / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("a line before\naplot: the last line\n\n")
    if failure:
        (log.parent / FAILURE_FILE).write_text(json.dumps(failure))
    outcome = runs.outcome(claim, 0, code, log)
    assert outcome.died is died
    assert (outcome.failure is None) is died
    if not died and code:
        assert outcome.failure == f"a line before\naplot: the last line\n(exit code {code}, {log})"
        assert shortened(outcome.failure) == "the last line"


def test_frozen_backbones_are_left_out_of_a_trials_checkpoints(tmp_path: Path) -> None:
    config = read_study(study_file(tmp_path))
    claim = Claim(3, "sample:0", {"tiny.x": 0.5})
    base = {"model": {"freeze_backbone": True}, "trainer": {"devices": 1, "callbacks": None}}
    for each, lean in ((base, True), ({**base, "model": {"freeze_backbone": False}}, False)):
        TrialRuns(config, each).prepare(claim, 0)
        written = yaml.safe_load((tmp_path / "study" / "trials" / "0003" / "trial.yaml").read_text())
        assert ("checkpoint_backbone" in written) is lean
