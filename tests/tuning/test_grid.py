"""A comparison's YAML: which runs it stands for, where they go, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.grid import Grid, read_grid

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of studies beside one of configs, and another that the command is run from."""
    for name in ("conf/base.yaml", "conf/objective/bt.yaml", "conf/objective/aplot.yaml", "conf/tuned.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("model: {}\n")
    for name in ("studies", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def plain(**changes: Any) -> dict[str, Any]:
    objectives = {"bt": "../conf/objective/bt.yaml", "aplot": "../conf/objective/aplot.yaml"}
    return {"configs": ["../conf/base.yaml"], "objectives": objectives, "seeds": [0, 1], **changes}


def read(folder: Path, content: dict[str, Any] | str, options: dict[str, Any] | None = None) -> Grid:
    path = folder / "studies" / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return read_grid([path], options or {})


def test_every_combination_is_one_cell_in_a_folder_of_its_own(folder: Path) -> None:
    axes = {
        "backbones": {"small": "a", "large": {"model": {"backbone": "b", "pooling": "mean"}}},
        "label_noise": [0, 0.25],
        "train_fraction": [1.0, 0.5],
    }
    grid = read(folder, plain(**axes, overrides={"trainer": {"max_epochs": 3}, "data.batch_size": 4}))
    cells = grid.cells()
    assert len(cells) == len({cell.run_dir for cell in cells}) == 2 * 2 * 2 * 2 * 2
    assert cells[0].run_dir == Path("runs/mine/small/bt/seed0")
    assert [cell.objective for cell in cells[:4]] == ["bt", "aplot", "bt", "aplot"]
    last = cells[-1]
    assert last.run_dir == Path("runs/mine/large/noise0.25/fraction0.5/aplot/seed1")
    assert str(last) == "large noise0.25 fraction0.5 aplot seed 1"
    assert last.overrides == {
        "trainer.max_epochs": 3,
        "data.batch_size": 4,
        "model.backbone": "b",
        "model.pooling": "mean",
        "data.label_noise": 0.25,
        "data.train_fraction": 0.5,
    }
    assert cells[0].overrides == {"trainer.max_epochs": 3, "data.batch_size": 4, "model.backbone": "a"}


def test_one_more_value_on_an_axis_moves_no_run(folder: Path) -> None:
    before = {(str(cell), cell.run_dir) for cell in read(folder, plain()).cells()}
    wider = read(folder, plain(label_noise=[0.0, 0.1], train_fraction=[1, 0.5], seeds=[0, 1, 2]))
    assert before < {(str(cell), cell.run_dir) for cell in wider.cells()}


def test_configs_are_found_beside_the_file_and_from_where_one_is(folder: Path) -> None:
    grid = read(folder, plain())
    assert [path.resolve() for path in grid.cells()[1].configs] == [
        folder / "conf/base.yaml",
        folder / "conf/objective/aplot.yaml",
    ]
    (folder / "elsewhere/own.yaml").write_text("model: {}\n")
    assert read(folder, plain(configs=["own.yaml"])).configs == (Path("own.yaml"),)


def test_a_list_of_files_or_of_shipped_names_is_named_by_them(folder: Path) -> None:
    grid = read(folder, plain(objectives=["aplot", "../conf/tuned.yaml"]))
    assert [path.name for path in grid.objectives["aplot"]] == ["aplot.yaml"]
    assert list(grid.objectives) == ["aplot", "tuned"]
    several = read(
        folder,
        plain(objectives={"bt": "bt", "mine": ["aplot.yaml", "../conf/tuned.yaml"]}, configs="x"),
        {
            "configs": ["../conf/base.yaml"],
            "objectives.mine": ["../conf/objective/aplot.yaml", "../conf/tuned.yaml"],
        },
    )
    assert [path.name for path in several.cells()[1].configs] == ["base.yaml", "aplot.yaml", "tuned.yaml"]


def test_options_of_the_command_line_win_and_change_single_keys(folder: Path) -> None:
    content = plain(
        overrides={"data": {"train": "hub/name", "batch_size": 8}},
        backbones={"small": {"model.backbone": "hub/small", "model.pooling": "mean"}, "large": "hub/large"},
    )
    options = {
        "workers": 3,
        "seeds": [7],
        "directory": "here",
        "overrides.data.train": "own.jsonl",
        "overrides.data.ood": {"llmbar": "llmbar.jsonl"},
        "backbones.small": "own/small",
        "backbones.large.model.dropout": 0.1,
    }
    grid = read(folder, content, options)
    assert (grid.workers, grid.seeds, grid.directory) == (3, (7,), Path("here"))
    assert grid.overrides == {"data.train": "own.jsonl", "data.batch_size": 8, "data.ood.llmbar": "llmbar.jsonl"}
    assert grid.backbones == {
        "small": {"model.backbone": "own/small", "model.pooling": "mean"},
        "large": {"model.backbone": "hub/large", "model.dropout": 0.1},
    }


def test_a_second_file_adds_to_overrides_and_replaces_the_rest(folder: Path) -> None:
    one, two = folder / "studies/one.yaml", folder / "studies/two.yaml"
    one.write_text(yaml.safe_dump(plain(overrides={"trainer.max_epochs": 1, "data.train": "a"})))
    two.write_text("seeds: [5]\noverrides: {data: {train: b}}\n")
    grid = read_grid([one, two], {})
    assert (grid.comparison, grid.seeds) == ("two", (5,))
    assert grid.overrides == {"trainer.max_epochs": 1, "data.train": "b"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectivs": 1}, r"mine.yaml: 'objectivs' is no key of a comparison; its keys are comparison, directory"),
        ({"configs": ["no.yaml"]}, r"configs: there is no file no.yaml \(looked from .*studies and .*elsewhere\)"),
        ({"configs": []}, "configs: name one or more config files"),
        ({"objectives": {}}, "objectives: name one or more"),
        ({"objectives": {"bt": "bt", "x": "no.yaml"}}, "objectives.x: there is no file no.yaml"),
        ({"objectives": ["bt", "../conf/objective/bt.yaml"]}, "objectives: 'bt' stands there twice; leave one out"),
        ({"objectives": {"a/b": "bt"}}, "objectives: 'a/b' cannot name a folder"),
        ({"seeds": []}, r"seeds: name one or more, such as \[0, 1, 2\]"),
        ({"seeds": [1, 1]}, "seeds: 1 is of no use; different whole numbers"),
        ({"seeds": [True]}, "seeds: True is of no use"),
        ({"seeds": 3}, "seeds: name one or more"),
        ({"overrides": {"seed_everything": 1}}, "overrides: seed_everything is set by `seeds`"),
        ({"overrides": {"data": {"label_noise": 0.1}}}, "overrides: data.label_noise is set by `label_noise`"),
        ({"overrides": {"run_dir": "x"}}, "overrides: run_dir is set by `directory`"),
        ({"overrides": "x"}, "overrides: keys of `fit` and their values are meant"),
        ({"backbones": ["a"]}, "backbones: {name: folder or hub name} is meant"),
        ({"backbones": {"a": {"model.pooling": "mean"}}}, "backbones.a: it has no model.backbone"),
        ({"label_noise": [0.0, 1.0]}, "label_noise: 1.0 is of no use; shares from 0 to below 1"),
        ({"label_noise": [0.1, 0.1]}, "label_noise: it is empty, or a value stands there twice"),
        ({"train_fraction": [0]}, "train_fraction: 0 is of no use; shares above 0, at most 1"),
        ({"train_fraction": ["half"]}, "train_fraction: 'half' is of no use"),
        ({"workers": 0}, "workers: 0 is of no use"),
        ({"comparison": "a b"}, "comparison: 'a b' cannot name a folder"),
        (
            {"objectives": {"bt": "bt", "noise0.5": "aplot"}},
            "objectives: 'noise0.5' is the name of a folder of compare",
        ),
        ({"backbones": {"seed1": "a"}}, "backbones: 'seed1' is the name of a folder of compare's own; take another"),
    ],
)
def test_a_mistake_is_one_line_with_the_key(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        read(folder, plain(**changes))
    assert "\n" not in str(error.value)
    assert "mine.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds: [0]\nobjectives:\n  bt: a\n  aplot: b\n  bt: c\n", r"mine.yaml:5: 'bt' stands there twice"),
        ("seeds: [0\n", r"mine.yaml:2: expected ',' or"),
        ("- 1\n", "mine.yaml holds no keys"),
    ],
)
def test_what_is_no_yaml_is_said_with_its_line(folder: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(folder, text)


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--config: no\.yaml cannot be read \(No such file or directory\)"):
        read_grid([Path("no.yaml")], {})


@pytest.mark.parametrize(("options", "said"), [({"seeds.x": 1}, "seeds has no key 'x'"), ({"no": 1}, "'no' is no key")])
def test_an_option_that_there_is_not(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(folder, plain(), options)


@pytest.mark.parametrize("name", ["objectives", "real_heads"])
def test_the_shipped_comparisons_read(name: str) -> None:
    grid = read_grid([ROOT / "studies" / f"{name}.yaml"], {})
    assert next(iter(grid.objectives)) == "bt"
    assert grid.comparison == name
    if name == "objectives":
        assert set(grid.objectives) == {path.stem for path in (ROOT / "conf/objective").glob("*.yaml")}
        assert len(grid.cells()) == 72
    else:
        assert len(grid.cells()) == 7 * 5 * 2
        assert all("model.pooling" in cell.overrides for cell in grid.cells())
