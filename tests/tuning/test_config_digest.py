"""A cell's digest: everything that its result follows from changes it, and nothing else does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.config_digest import cell_digest, merge, merged_config
from aplot_lightning.tuning.grid import Cell, Setting

LINK = {"class_path": "aplot_lightning.objectives.Logistic"}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configs, data and a backbone, from which the command is run."""
    folder = tmp_path / "one"
    (folder / "backbone").mkdir(parents=True)
    (folder / "backbone" / "config.json").write_text("{}")
    (folder / "backbone" / "model.safetensors").write_bytes(b"weights")
    for name in ("train", "llmbar"):
        (folder / f"{name}.jsonl").write_text(f'{{"prompt": "{name}", "chosen": "a", "rejected": "b"}}\n')
    base = {
        "trainer": {"max_epochs": 1},
        "model": {"backbone": "backbone", "objective": {"class_path": "a.B", "init_args": {"link": LINK}}},
        "data": {"train": "train.jsonl", "ood": {"llmbar": {"path": "llmbar.jsonl", "columns": {"prompt": "prompt"}}}},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "aplot.yaml").write_text("model: {objective: {class_path: a.B, init_args: {margin: 3}}}\n")
    monkeypatch.chdir(folder)
    return folder


def cell(**changes: Any) -> Cell:
    plain = Cell(Setting(), "aplot", 0, Path("runs/aplot/seed0"), (Path("base.yaml"), Path("aplot.yaml")), {})
    return replace(plain, **changes)


def edited(path: str, before: str, after: str) -> Callable[[], None]:
    def edit() -> None:
        text = Path(path).read_text()
        assert before in text
        Path(path).write_text(text.replace(before, after))

    return edit


def test_neither_the_place_of_the_checkout_nor_how_configs_are_written_counts(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = cell_digest(cell())
    other = checkout.parent / "two"
    shutil.copytree(checkout, other)
    (other / "aplot.yaml").write_text("# a comment\n" + (other / "aplot.yaml").read_text())
    monkeypatch.chdir(other)
    assert cell_digest(cell()) == digest
    assert cell_digest(cell(configs=tuple(other / path for path in cell().configs), run_dir=Path("x"))) == digest
    absolute = {"data.train": str(other / "train.jsonl"), "model.backbone": str(other / "backbone")}
    assert cell_digest(cell(overrides=absolute)) == digest
    (other / "renamed.jsonl").write_bytes((other / "train.jsonl").read_bytes())
    how = {"data.num_workers": 2, "data.cache_dir": "/tmp/x", "data.preparation_workers": 1}
    assert cell_digest(cell(overrides=how)) == digest


@pytest.mark.parametrize(
    "change",
    [
        edited("base.yaml", "max_epochs: 1", "max_epochs: 2"),
        edited("aplot.yaml", "margin: 3", "margin: 4"),
        edited("train.jsonl", '"a"', '"c"'),
        edited("llmbar.jsonl", '"a"', '"c"'),
        edited("backbone/model.safetensors", "weights", "other"),
        edited("backbone/config.json", "{}", "{ }"),
    ],
)
def test_what_a_result_follows_from_counts(checkout: Path, change: Callable[[], None]) -> None:
    from aplot_lightning.tuning import config_digest

    before = cell_digest(cell())
    change()
    for kept in (config_digest._data_digest, config_digest.model_digest, config_digest._parsed):
        kept.cache_clear()  # of a process of its own
    assert cell_digest(cell()) != before


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"configs": (Path("base.yaml"),)},
        {"overrides": {"data.label_noise": 0.25}},
        {"overrides": {"data.ood.llmbar": "train.jsonl"}},
        {"overrides": {"model.backbone": "hub/name"}},
    ],
)
def test_seed_configs_and_overrides_count(checkout: Path, changes: dict[str, Any]) -> None:
    assert cell_digest(cell(**changes)) != cell_digest(cell())


def test_a_missing_file_is_said_with_its_key(checkout: Path) -> None:
    with pytest.raises(UserError, match=r"data\.ood\.other: no such file: 'no\.jsonl'"):
        cell_digest(cell(overrides={"data.ood.other": "no.jsonl"}))
    with pytest.raises(UserError, match=r"data\.train\[1\]: no such file"):
        cell_digest(cell(overrides={"data.train": ["train.jsonl", "./no"]}))


def test_a_hub_name_and_a_class_stand_for_themselves(checkout: Path) -> None:
    world = {"class_path": "aplot_lightning.data.world.PreferenceWorld", "init_args": {"pairs": 10}}
    digests = {
        cell_digest(cell(overrides={"data.train": source}))
        for source in ("Anthropic/hh-rlhf", "Anthropic/hh-rlhf:test", world, {**world, "init_args": {"pairs": 11}})
    }
    assert len(digests) == 4


def test_a_large_models_file_is_read_in_places(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aplot_lightning.tuning import config_digest

    monkeypatch.setattr(config_digest, "SAMPLED", 100)
    digests = set()
    for first, last, size in ((b"a", b"b", 200), (b"c", b"b", 200), (b"a", b"d", 200), (b"a", b"b", 201)):
        Path("backbone/model.safetensors").write_bytes(first + b"-" * (size - 2) + last)
        config_digest.model_digest.cache_clear()
        digests.add(cell_digest(cell()))
    assert len(digests) == 4


def test_configs_merge_as_fit_merges_them(checkout: Path) -> None:
    """Mappings deeply, dictionaries of sources as a whole; overrides last."""
    assert merged_config(cell())["model"]["objective"]["init_args"] == {"link": LINK, "margin": 3}
    config: dict[str, Any] = {"data": {"train": "a", "ood": {"x": 1}}}
    merge(config, {"data": {"ood": {"y": 2}, "id": "b"}, "seed": 1})
    assert config == {"data": {"train": "a", "ood": {"y": 2}, "id": "b"}, "seed": 1}
    config = merged_config(cell(overrides={"data.ood.new": "n", "model.backbone.odd": 1}))
    assert set(config["data"]["ood"]) == {"llmbar", "new"}
    assert config["model"]["backbone"] == {"odd": 1}
