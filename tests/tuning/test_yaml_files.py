"""YAML files of studies, and nested keys as dotted ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.yaml_files import flat, read_yaml


def test_nested_keys_are_dotted_ones_and_a_class_stays_whole() -> None:
    objective = {"class_path": "a.B", "init_args": {"c": 1}}
    assert flat({"model": {"objective": objective, "x": [1]}, "data.ood": {}, "y": None}) == {
        "model.objective": objective,
        "model.x": [1],
        "data.ood": {},
        "y": None,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", r"x\.yaml:2: 'c' stands there twice; mend the YAML"),
        ("a: [\n", r"x\.yaml:2: "),
        ("\x07: 1\n", r"x\.yaml: .*mend the YAML"),
        ("text\n", r"x\.yaml holds no keys"),
    ],
)
def test_what_is_no_yaml_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_yaml(tmp_path / "x.yaml", "--config")
    assert str(error.value).startswith("--config: ")
    assert "\n" not in str(error.value)


def test_what_is_there_twice_in_different_places_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: {x: 1}\nb: {x: 2}\nc: &c {y: 1}\nd: *c\n")
    assert read_yaml(tmp_path / "x.yaml", "--config") == {"a": {"x": 1}, "b": {"x": 2}, "c": {"y": 1}, "d": {"y": 1}}
