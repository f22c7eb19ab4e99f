from __future__ import annotations

import pytest

from aplot_lightning.tuning.config_keys import look_up, nested

BASE = {
    "model": {
        "objective": {"class_path": "O", "init_args": {"margin": {"class_path": "M", "init_args": {"epsilon": 0.1}}}},
        "head": None,
    },
    "data": {"train": "pairs.jsonl", "batch_size": 8},
    "seed_everything": 0,
}


@pytest.mark.parametrize(
    "key", ["model.objective.margin.epsilon", "model.objective.init_args.margin.init_args.epsilon"]
)
def test_both_spellings_of_a_key_name_the_class_that_the_base_has(key: str) -> None:
    margin = {"class_path": "M", "init_args": {"epsilon": 0.5}}
    assert nested({key: 0.5}, BASE) == {"model": {"objective": {"class_path": "O", "init_args": {"margin": margin}}}}
    assert look_up(key, BASE) == 0.1


def test_a_searched_class_comes_before_its_arguments() -> None:
    found = nested({"model.objective.margin.queue": 3, "model.objective.margin.class_path": "Q"}, BASE)
    assert found["model"]["objective"]["init_args"]["margin"] == {"class_path": "Q", "init_args": {"queue": 3}}


def test_plain_keys_nest() -> None:
    keys = {"seed_everything": 3, "data.batch_size": 4, "model.head.width": 2}
    assert nested(keys, BASE) == {"seed_everything": 3, "data": {"batch_size": 4}, "model": {"head": {"width": 2}}}


@pytest.mark.parametrize("key", ["model.head.width", "data.train.path", "nothing"])
def test_a_key_that_the_config_has_not_is_none_to_look_up(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        look_up(key, BASE)
