"""The whole config that fit makes of its arguments, and a file of it that fit reads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.tuning.fit_config import fit_configs, is_single_process, write_fit_config
from tests.conftest import ROOT, Laboratory

APLOT = str(ROOT / "conf" / "objective" / "aplot.yaml")


def whole_config(arguments: list[str]) -> dict[str, Any]:
    (config,) = fit_configs([arguments])
    return config


def test_later_configs_and_arguments_win_and_defaults_are_filled_in(laboratory: Laboratory) -> None:
    arguments = ["--config", laboratory.config, "--config", APLOT, "--model.objective.margin.factor", "0.5"]
    config = whole_config([*arguments, "--run_dir", "somewhere", "--overwrite", "true"])
    margin = config["model"]["objective"]["init_args"]["margin"]
    assert margin["init_args"]["factor"] == 0.5
    assert margin["init_args"]["iterations"] == 50
    assert config["trainer"]["max_epochs"] == 2
    assert config["data"]["train"].endswith("train.jsonl")
    assert not {"run_dir", "overwrite", "ckpt_path", "config"} & set(config)


def test_the_file_is_read_back_as_it_was_under_its_comment(laboratory: Laboratory, tmp_path: Path) -> None:
    config = whole_config(["--config", laboratory.config, "--model.learning_rate", "0.00001"])
    path = tmp_path / "deep" / "best.yaml"
    write_fit_config(path, config, ["Of a study.", "", "  a command"])
    assert path.read_text().startswith("# Of a study.\n#\n#   a command\nseed_everything: 3\n")
    assert yaml.safe_load(path.read_text()) == config
    assert whole_config(["--config", str(path)]) == config
    assert [each.name for each in path.parent.iterdir()] == ["best.yaml"]


def test_what_fit_refuses_is_one_line_and_other_configs_are_read(laboratory: Laboratory) -> None:
    with pytest.raises(UserError, match=r"--model\.lr 3"):
        whole_config(["--config", laboratory.config, "--model.lr", "3"])
    good, bad = ["--config", laboratory.config], ["--config", laboratory.config, "--model.lr", "3"]
    configs = fit_configs([good, bad, good], workers=2)
    assert next(configs)["seed_everything"] == 3
    with pytest.raises(UserError):
        next(configs)


def test_a_file_that_fit_would_read_otherwise_is_never_left(laboratory: Laboratory, tmp_path: Path) -> None:
    config = whole_config(["--config", laboratory.config])
    del config["trainer"]["max_epochs"]  # its default is read in its place
    with pytest.raises(RunError, match="would read another config"):
        write_fit_config(tmp_path / "best.yaml", config, [])
    assert not (tmp_path / "best.yaml").exists()


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
    assert is_single_process({"trainer": trainer}) is single
