"""Mistyped keys are found before anything heavy is imported, and a valid command is never rejected."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from aplot_lightning import objectives
from aplot_lightning.data.world import PreferenceWorld
from aplot_lightning.errors import UserError
from aplot_lightning.key_check import SECTIONS, _accepted, check_keys
from aplot_lightning.model import heads

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))
TYPO = {"class_path": "aplot_lightning.data.world.PreferenceWorld", "init_args": {"pears": 3}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_passes(path: Path) -> None:
    check_keys([], [yaml.safe_load(path.read_text())])


def test_every_key_of_a_shipped_study_passes() -> None:
    studies = [yaml.safe_load(path.read_text()) for path in (ROOT / "studies").glob("*.yaml")]
    keys = {key for study in studies for key in study.get("space", {}) if "." in key}
    assert "model.learning_rate" in keys
    check_keys([f"--{key}=1" for key in keys], [])


def test_the_names_read_from_the_source_are_those_of_the_real_classes() -> None:
    sections = {path: __import__(path.rpartition(".")[0], fromlist=["x"]) for path in SECTIONS.values()}
    classes = {path: getattr(module, path.rpartition(".")[2]) for path, module in sections.items()}
    for package in (objectives, heads):
        classes |= {f"{package.__name__}.{name}": getattr(package, name) for name in package.__all__}
    classes["aplot_lightning.data.world.PreferenceWorld"] = PreferenceWorld
    read = {path: names for path in classes if (names := _accepted(path, path)) is not None}
    assert read.keys() > {*SECTIONS.values(), "aplot_lightning.objectives.TransportMargin"}
    for path, names in read.items():
        assert list(names) == list(signature(classes[path]).parameters), path


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (["--data.train", "pairs.jsonl"], {"data": {"train": TYPO}}),  # the flag replaces the wrong value
        (["--trainer.callbacks+=x", "--model.objective.margin.epsilon", "1", "--data.ood.far.init_args.x=1"], {}),
        (["--model", "m.yaml", "--trainer.logger.help", "x", "--model.objective", "Objective"], {"model": "m.yaml"}),
        ([], {"trainer": {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"x": 1}}]}}),
        (["--model.backbone", "aplot_lightning.Backbone"], {"model": {"init_from": "aplot_lightning.Model"}}),
        (["--run_dirr", "x"], {"dta": {}, "model": None}),  # left to the full parser, as all that follows
        ([], {"model": {"objective": {"class_path": "Objective", "init_args": {"x": 1}}}}),
        ([], {"model": {"objective": {"init_args": {"x": 1}}}}),
    ],
)
def test_what_it_cannot_judge_is_left_to_the_parser(arguments: list[str], config: dict[str, Any]) -> None:
    check_keys(arguments, [config])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.lerning_rate", "3"], "unrecognized argument --model.lerning_rate; did you mean model.learning_rate"),
        (["--data.trian=x"], "unrecognized argument --data.trian; did you mean data.train"),
        (["--trainer.zzz=x"], "unrecognized argument --trainer.zzz; see --help"),
        (["--model.objective=aplot_lightning.objectives.Objectiv"], "no attribute 'Objectiv'; did you mean"),
        (["--model.objective", "aplot_lightning.objectives.X"], "no attribute 'X'; give a class path"),
    ],
)
def test_a_mistyped_argument_is_answered_with_the_closest(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_keys(arguments, [])


def test_of_several_configs_the_last_value_counts() -> None:
    with pytest.raises(UserError, match=r"data.train: Option 'pears' is not accepted by PreferenceWorld, only .*pairs"):
        check_keys([], [{"data": {"train": "pairs.jsonl"}}, {"data": {"train": [TYPO]}}])
    check_keys([], [{"data": {"train": TYPO}}, {"data": {"train": "pairs.jsonl"}}])
