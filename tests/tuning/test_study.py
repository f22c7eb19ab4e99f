from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.metrics import summarise_set
from aplot_lightning.evaluation.monitor import LOWER_IS_BETTER, METRICS
from aplot_lightning.tuning.study import read_study
from tests.tuning.studies import study_file

SHIPPED = Path(__file__).parents[2] / "studies" / "cost_weights.yaml"


def test_the_metrics_are_those_that_a_set_has() -> None:
    assert set(METRICS) == set(summarise_set(None)) - {"ci95", "pairs"}
    assert set(LOWER_IS_BETTER) <= set(METRICS)


def test_a_file_and_the_options_over_it(tmp_path: Path) -> None:
    config = read_study(study_file(tmp_path, trials=7, seeds=3, first_seed=4), {"workers": 2, "trials": None})
    assert (config.trials, config.workers, config.seed_list) == (7, 2, [4, 5, 6])
    assert config.location == f"sqlite:///{tmp_path / 'study' / 'study.db'}"
    assert config.direction == "maximize"
    assert replace(config, monitor="validation/log_loss").direction == "minimize"
    assert config.configs == [str(tmp_path / "base.yaml")]


def test_configs_are_found_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = study_file(tmp_path, configs=["base.yaml"], baselines={"b": {"configs": ["base.yaml"]}})
    monkeypatch.chdir("/")
    config = read_study(file)
    assert config.configs == config.baselines["b"].configs == [str(tmp_path / "base.yaml")]


def test_journals_and_databases_have_a_place_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, wanted in {
        "journal:a.log": f"journal:{tmp_path}/a.log",
        "sqlite:///a.db": f"sqlite:///{tmp_path}/a.db",
        "postgresql://u:p@host/d": "postgresql://u:p@host/d",
    }.items():
        assert read_study(study_file(tmp_path), {"storage": given}).location == wanted


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"workerz": 3}, "Option 'workerz' is not accepted"),
        ({"trials": 0}, "trials: 0 is less than 1"),
        ({"trials": "many"}, "trials: Expected int"),
        ({"sampler": "cma"}, "sampler: Expected one of 'tpe', 'random', 'grid', 'gp'"),
        ({"seeds": 0}, "seeds: 0 is less than 1"),
        ({"study": "a/b"}, "is no name for a folder"),
        ({"configs": []}, "configs: name at least one"),
        ({"configs": ["nowhere.yaml"]}, "configs: there is no file nowhere.yaml"),
        ({"baselines": {"bt": {"configs": ["nowhere.yaml"]}}}, r"baselines\.bt\.configs: there is no file"),
        ({"baselines": {"bt": {"config": []}}}, "config"),
        ({"baselines": {"bt": {"values": {"tiny.y": 1}}}}, r"baselines\.bt\.values: the space has no 'tiny\.y'"),
        ({"baselines": {"bt": {"values": {"tiny.x": 2.0}}}}, r"baselines\.bt\.values\.tiny\.x: 2\.0 is outside"),
        ({"monitor": "id/accuracy"}, "may not select: test sets"),
        ({"monitor": "ood/hard/accuracy"}, "may not select: test sets"),
        ({"monitor": "ood_mean/accuracy"}, "may not select: test sets"),
        ({"monitor": "validation/acuracy"}, "there is no metric 'acuracy'; choose from accuracy"),
        ({"storage": "mysql://host/db"}, "storage: 'mysql://host/db' is not supported"),
        ({"storage": "redis://u:secret@host"}, r"u:\*\*\*@host"),
        ({"overrides": {"monitor": "id/accuracy"}}, "overrides: monitor follows from the study's own key monitor"),
        ({"overrides": {"run_dir": "x"}}, "overrides: run_dir follows from"),
        ({"overrides": {"tiny.x": 1}}, r"overrides: tiny\.x is searched in the space too"),
        ({"space": {"seed_everything": {"int": [0, 9]}}}, "space: seed_everything follows from"),
        ({"sampler": "grid"}, r"space\.tiny\.x: a grid needs steps"),
        ({"devices": []}, "devices: the list is empty"),
        ({"devices": ["gpu"]}, "devices: 'gpu' is no CUDA device"),
        ({"confirm": {"seeds": -1}}, r"confirm\.seeds: -1 is less than 0"),
        ({"pruner": "early"}, "pruner: 'early' is unknown; use median, hyperband"),
        ({"pruner": {"class_path": "PercentilePruner"}}, "pruner: PercentilePruner: .*percentile"),
    ],
)
def test_mistakes_are_one_line_with_the_file(keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = study_file(tmp_path, **keys)
    with pytest.raises(UserError, match=said) as caught:
        read_study(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"), [("a: [", "no YAML"), ("- 1", "holds no keys"), (None, "cannot be read: No such file")]
)
def test_what_is_no_study_is_one_line(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        read_study(file)
    assert "\n" not in str(caught.value)


def test_the_shipped_study_keeps_the_weights_sum_at_one() -> None:
    config = read_study(SHIPPED)
    keys = config.search_space.overrides(config.search_space.samples()[0] | {"share": 0.3})
    margin = "model.objective.margin"
    assert keys[f"{margin}.similarity_weight"] + keys[f"{margin}.reward_weight"] == pytest.approx(1)
    assert set(keys) == {
        *(f"{margin}.{name}" for name in ("similarity_weight", "reward_weight", "epsilon", "factor", "reading")),
        "model.learning_rate",
    }
    assert json.dumps(config.identity())
