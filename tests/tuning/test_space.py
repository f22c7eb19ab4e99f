from __future__ import annotations

import itertools
from typing import Any

import optuna
import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.config_keys import look_up
from aplot_lightning.tuning.space import SearchSpace, same_point

MARGIN = "model.objective.margin"
SPACE = {
    "share": {
        "float": [0.0, 1.0],
        "sets": {f"{MARGIN}.similarity_weight": "share", f"{MARGIN}.reward_weight": "1 - share"},
    },
    f"{MARGIN}.reading": {"categorical": ["conditional", "mass"]},
    f"{MARGIN}.epsilon": {"float": [0.01, 1.0], "log": True, "when": {f"{MARGIN}.reading": "mass"}},
    "data.batch_size": {"int": [16, 64], "step": 16},
}
BASE = {
    "model": {
        "objective": {
            "class_path": "Objective",
            "init_args": {
                "margin": {
                    "class_path": "Transport",
                    "init_args": {
                        "similarity_weight": 0.1,
                        "reward_weight": 0.9,
                        "reading": "conditional",
                        "epsilon": 0.1,
                    },
                }
            },
        }
    },
    "data": {"batch_size": 32},
}


def base(key: str) -> Any:
    return look_up(key, BASE)


def test_values_are_drawn_by_optuna_and_set_keys() -> None:
    space = SearchSpace.parse(SPACE)
    fixed = optuna.trial.FixedTrial(
        {"share": 0.25, f"{MARGIN}.reading": "mass", f"{MARGIN}.epsilon": 0.5, "data.batch_size": 48}
    )
    assert space.overrides(space.suggest(fixed)) == {
        f"{MARGIN}.similarity_weight": 0.25,
        f"{MARGIN}.reward_weight": 0.75,
        f"{MARGIN}.reading": "mass",
        f"{MARGIN}.epsilon": 0.5,
        "data.batch_size": 48,
    }


def test_a_conditional_parameter_is_there_only_with_the_value_it_asks_for() -> None:
    space = SearchSpace.parse(SPACE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(20):
        values = space.suggest(study.ask())
        assert (f"{MARGIN}.epsilon" in values) == (values[f"{MARGIN}.reading"] == "mass")
        assert (f"{MARGIN}.epsilon" in space.overrides(values)) == (f"{MARGIN}.epsilon" in values)
        seen.add(values[f"{MARGIN}.reading"])
    assert seen == {"conditional", "mass"}


def test_the_grid_has_every_point_once() -> None:
    space = SearchSpace.parse(
        {
            "a": {"categorical": ["x", "y"]},
            "b": {"float": [0.0, 0.3], "step": 0.1},
            "c": {"int": [1, 3], "when": {"a": "y"}},
        }
    )
    numbers = [0.0, 0.1, 0.2, 0.3]
    wanted = [{"a": "x", "b": b} for b in numbers]
    wanted += [{"a": "y", "b": b, "c": c} for b, c in itertools.product(numbers, [1, 2, 3])]
    assert space.grid() == wanted
    for point in wanted:  # Optuna takes each as one of its own
        assert space.suggest(optuna.trial.FixedTrial(point)) == point


def test_few_samples_name_every_parameter() -> None:
    space = SearchSpace.parse(SPACE)
    samples = space.samples()
    assert set().union(*samples) == set(SPACE)
    assert len(samples) == 2


def test_a_config_is_read_back_as_a_point() -> None:
    space = SearchSpace.parse(SPACE)
    assert space.point({}, base) == {"share": 0.1, f"{MARGIN}.reading": "conditional", "data.batch_size": 32}
    assert same_point(
        space.point({f"{MARGIN}.reading": "mass", "share": 0.5}, base),
        {"share": 0.5, f"{MARGIN}.reading": "mass", f"{MARGIN}.epsilon": 0.1, "data.batch_size": 32},
    )


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"data.batch_size": {"int": [64, 128]}}, "32 is outside"),
        ({"data.batch_size": {"int": [20, 60], "step": 20}}, "32 is off the steps"),
        ({f"{MARGIN}.reading": {"categorical": ["mass", "total"]}}, "'conditional' is none of"),
        ({"model.head.width": {"int": [1, 4]}}, "None is no number"),
        (
            {"twice": {"int": [1, 64], "sets": {"data.batch_size": "2 * twice"}}},
            "cannot be read back|None is no number",
        ),
        (
            {"w": {"float": [0, 1], "sets": {f"{MARGIN}.similarity_weight": "w", f"{MARGIN}.reward_weight": "w"}}},
            "reward_weight is 0.9, and 0.1",
        ),
    ],
)
def test_a_config_outside_the_space_is_no_point(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SearchSpace.parse(space).point({}, base)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "nothing is searched"),
        ({"a": 3}, r"space\.a: 3 is no parameter"),
        ({"a": {"float": [0, 1], "lgo": True}}, r"space\.a: unknown key 'lgo' of a float; there are float, sets"),
        ({"a": {"float": [0, 1], "int": [0, 1]}}, "name one of float, int, categorical"),
        ({"a": {"range": [0, 1]}}, "name one of float, int, categorical"),
        ({"a": {"float": ["1e-4", 1.0]}}, r"1\.0e-4, not 1e-4"),
        ({"a": {"float": [1, 0]}}, "the lower value first"),
        ({"a": {"float": [0, 1], "log": True}}, "a low above 0 for log"),
        ({"a": {"int": [0.5, 1]}}, "is no range of int"),
        ({"a": {"int": [0, 9], "step": 0}}, r"space\.a\.step: 0"),
        ({"a": {"float": [0.1, 9.0], "step": 0.1, "log": True}}, "not with log"),
        ({"a": {"categorical": []}}, "takes a list"),
        ({"a": {"categorical": [[1]]}}, "is no single value"),
        ({"a": {"categorical": [1, 1]}}, "stands twice"),
        ({"a": {"categorical": [1, 2], "log": True}}, "unknown key 'log' of a categorical"),
        ({"a": {"float": [0, 1], "sets": {"k": "1 - b"}}}, r"space\.a\.sets\.k: there is no parameter 'b'"),
        ({"a": {"float": [0, 1], "sets": {"k": "a"}}, "k": {"int": [0, 1]}}, "k is set twice"),
        ({"a": {"float": [0, 1], "when": {"b": 1}}}, "no parameter 'b' before it"),
        ({"b": {"int": [0, 1]}, "a": {"float": [0, 1], "when": {"b": 2}}}, r"space\.a\.when\.b: 2 is outside"),
    ],
)
def test_what_cannot_be_meant_is_one_line(space: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        SearchSpace.parse(space)
    assert "\n" not in str(caught.value)


def test_a_grid_needs_steps() -> None:
    with pytest.raises(UserError, match=r"space\.a: a grid needs steps"):
        SearchSpace.parse({"a": {"float": [0, 1]}}).check_grid()


def test_an_expression_over_a_value_that_is_not_there_is_told() -> None:
    space = SearchSpace.parse(
        {
            "a": {"categorical": [1, 2]},
            "b": {"int": [0, 3], "when": {"a": 2}},
            "c": {"int": [0, 1], "sets": {"k": "b + c"}},
        }
    )
    assert space.overrides({"a": 2, "b": 3, "c": 1}) == {"a": 2, "b": 3, "k": 4}
    with pytest.raises(UserError, match=r"space\.c\.sets\.k: b has no value here"):
        space.overrides({"a": 1, "c": 1})
