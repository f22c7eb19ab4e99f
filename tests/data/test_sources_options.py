"""Sources with options: dicts, columns under other names, several with weights, class paths, the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from aplot_lightning import PreferenceDataModule
from aplot_lightning.data.comparisons import Comparison
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.sources import HubDataset, JsonLines, Source, open_source, open_sources
from aplot_lightning.data.world import PreferenceWorld
from aplot_lightning.errors import UserError
from tests.reading import read_comparisons

WORLD = "aplot_lightning.data.world.PreferenceWorld"
ROWS = [
    {"question": f"q {n}", "answers": {"good": f"yes {n}", "bad": {"text": "no"}}, "strength": n, "prompt": "unused"}
    for n in range(3)
]
COLUMNS = {"prompt": "question", "chosen": "answers.good", "rejected": "answers.bad.text", "margin": "strength"}


class Rows(Source):
    name = "rows"

    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = list(rows)

    def rows(self) -> Iterator[tuple[str, Any]]:
        yield from ((f"rows:{number}", row) for number, row in enumerate(self._rows, 1))


def write(path: Path, rows: Iterable[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(value: Any, key: str = "data.train", **options: Any) -> tuple[list[Comparison], SourceLedger]:
    source = open_source(value, key)
    ledger = SourceLedger(source.name)
    return read_comparisons(source, key=key, ledger=ledger, **options), ledger


def mistake(value: Any, key: str = "data.train", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(value, key, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(key)
    return message


# Options


def test_columns_are_read_under_our_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    comparisons, _ = read({"path": path, "columns": COLUMNS})
    assert [c.prompt[0]["content"] for c in comparisons] == ["q 0", "q 1", "q 2"]
    assert [c.responses[0][0]["content"] for c in comparisons] == ["yes 0", "yes 1", "yes 2"]
    assert [c.margin for c in comparisons] == [0, 1, 2]
    assert [c.where for c in comparisons] == ["x.jsonl:1", "x.jsonl:2", "x.jsonl:3"]


def test_two_columns_may_change_places(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b", "id": 3, "key": 4}])
    swapped = {"chosen": "rejected", "rejected": "chosen", "id": "key", "subset": "id"}
    (comparison,), _ = read({"path": path, "columns": swapped})
    assert [response[0]["content"] for response in comparison.responses] == ["b", "a"]
    assert (comparison.id, comparison.subset) == ("4", "3")


def test_a_column_that_some_rows_lack_is_a_missing_field(tmp_path: Path) -> None:
    rows = [ROWS[0], {"question": "q"}, {**ROWS[1], "answers": 3}, {**ROWS[2], "answers": None}, ["list"]]
    comparisons, ledger = read({"path": write(tmp_path / "x.jsonl", rows), "columns": COLUMNS})
    assert len(comparisons) == 1
    assert ledger.refused["missing_field"] == 3
    assert ledger.refused["not_json"] == 1
    assert "'answers.good', which columns.chosen names" in ledger.locations["missing_field"][0][1]


def test_a_column_that_no_row_has_is_a_mistake(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    message = mistake({"path": path, "columns": {**COLUMNS, "margin": "strenght"}})
    assert message == (
        f"data.train: columns.margin: no row of {path!r} has a column 'strenght'; "
        "there are question, answers, strength, prompt"
    )
    assert "'strenght'" in mistake({"path": path, "columns": {**COLUMNS, "margin": "strenght"}}, on_bad_row="error")


def test_a_label_for_rows_that_name_none(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "r", "chosen": "a", "rejected": "b", "source": "x"},
    ]
    path = write(tmp_path / "x.jsonl", rows)
    comparisons, ledger = read({"path": path, "source": "people"})
    assert [c.source for c in comparisons] == ["people", "x"]
    assert ledger.name == "people"
    assert [c.where for c in comparisons] == ["x.jsonl:1", "x.jsonl:2"]


def test_options_of_a_hub_data_set() -> None:
    source = open_source({"name": "a/b", "split": "test", "config": "c", "streaming": True}, "data.ood.far")
    assert isinstance(source, HubDataset)
    assert (source.dataset, source.split, source.config, source.streaming) == ("a/b", "test", "c", True)
    assert open_source({"name": "a/b"}, "data.train").name == "a/b:train"


def test_mistakes_in_options(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    accepted = "path, name, split, config, columns, weight, source, streaming"
    for options, said in [
        ({"weigth": 2}, f"data.train has no option 'weigth': its options are {accepted}"),
        ({"name": "a/b"}, "either `path` (a file or folder) or `name`"),
        ({"weight": 0}, "data.train.weight is 0"),
        ({"weight": "2"}, "data.train.weight is '2'"),
        ({"weight": math.nan}, "data.train.weight is nan"),
        ({"weight": True}, "data.train.weight is True"),
        ({"streaming": "yes"}, "data.train.streaming is 'yes'"),
        ({"source": 3}, "data.train.source is 3"),
        ({"columns": "question"}, "data.train.columns is 'question'"),
        ({"columns": {}}, "data.train.columns is {}"),
        ({"columns": {"question": "prompt"}}, "data.train.columns has 'question', which is no name of ours"),
        ({"columns": {"prompt": 3}}, "data.train.columns.prompt is 3"),
        ({"path": str(tmp_path / "no.jsonl")}, "no such file"),
        ({"path": 3}, "data.train.path is 3"),
        ({3: 4}, "has no option 3"),
    ]:
        assert said in mistake({"path": path, **options}), options
    assert "needs either" in mistake({})
    assert "only sources of data.train are drawn by weight" in mistake({"path": path, "weight": 2}, "data.ood.far")
    heavy = JsonLines(path)
    heavy.weight = -1.0
    assert "data.train.weight is -1" in mistake(heavy)


# Several sources


def test_several_sources_with_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    world = PreferenceWorld(pairs=10)
    sources = open_sources(
        [path, {"path": write(tmp_path / "b.jsonl", ROWS), "weight": 0.5}, world, "a/b:test"], "data.train"
    )
    assert [source.name for source in sources] == ["a.jsonl", "b.jsonl", "world", "a/b:test"]
    assert [source.weight for source in sources] == [1, 0.5, 1, 1]
    assert [source.name for source in open_sources(path, "data.train")] == ["a.jsonl"]
    assert open_sources({"path": path, "weight": 3}, "data.train")[0].weight == 3


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    paths = [write(tmp_path / folder / "train.jsonl", [row]) for folder in ("one", "two", "three/two")]
    sources = open_sources([paths[0], {"path": paths[1], "columns": {"prompt": "prompt"}}], "data.train")
    assert [source.name for source in sources] == ["one/train.jsonl", "two/train.jsonl"]
    assert [where for source in sources for where, _ in source.rows()] == ["one/train.jsonl:1", "two/train.jsonl:1"]
    deeper = open_sources(paths, "data.train")
    assert deeper[1].name.endswith("/two/train.jsonl")
    assert len({source.name for source in deeper}) == 3
    labelled = open_sources([paths[0], {"path": paths[0], "source": "again"}], "data.train")
    assert [source.name for source in labelled] == ["train.jsonl", "again"]


def test_mistakes_in_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS)
    for value, said in [
        ([], "data.train is an empty list"),
        ([path, path], "two sources are named 'x.jsonl'"),
        ([{"path": path, "source": "x"}, {"path": path, "source": "x"}], "two sources are named 'x'"),
        ([path, [path]], "data.train[1] is ["),
        ([path, {"path": path, "weigth": 1}], "data.train[1] has no option 'weigth'"),
        ([path, 3], "data.train[1] is 3"),
        ([path, str(tmp_path / "no.jsonl")], "data.train[1]: no such file"),
    ]:
        with pytest.raises(UserError) as caught:
            open_sources(value, "data.train")
        assert said in str(caught.value), value
        assert "\n" not in str(caught.value)
    assert "several sources can only be trained on" in mistake([path], "data.id")


# Class paths and the command line


def test_a_class_path_in_a_dict() -> None:
    source = open_source({"class_path": WORLD, "init_args": {"pairs": 12, "shift": "new_topics"}}, "data.train")
    assert isinstance(source, PreferenceWorld)
    assert (source.pairs, source.shift) == (12, "new_topics")


def test_mistakes_in_class_paths() -> None:
    for value, said in [
        ({"class_path": "aplot_lightning.nothing.World"}, "data.train.class_path: No module named"),
        ({"class_path": "aplot_lightning.data.world.World"}, "has no attribute 'World'"),
        ({"class_path": "World"}, "data.train.class_path is 'World': the path of a class of sources is meant"),
        ({"class_path": 3}, "data.train.class_path is 3"),
        ({"class_path": "aplot_lightning.errors.UserError"}, "is no class of sources"),
        ({"class_path": "aplot_lightning.data.sources.Source"}, "is no class of sources"),
        (
            {"class_path": WORLD, "init_args": {"pairz": 1}},
            "PreferenceWorld accepts no 'pairz', only shift, pairs, seed",
        ),
        ({"class_path": WORLD, "init_args": {"pairs": "many"}}, "many"),
        ({"class_path": WORLD, "init_args": [1]}, "data.train.init_args is [1]"),
        ({"class_path": WORLD, "weight": 2}, "data.train has 'weight' beside class_path"),
    ]:
        assert said in mistake(value), value


def parsed(*arguments: str) -> PreferenceDataModule:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(PreferenceDataModule, "data", sub_configs=False)
    config = parser.parse_args(list(arguments))
    again = parser.parse_string(parser.dump(config))  # as config.yaml keeps it
    assert parser.dump(again) == parser.dump(config)
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return make(again).data


def test_values_on_the_command_line() -> None:
    options = {"path": "x.jsonl", "columns": {"prompt": "question"}, "weight": 2}
    assert parsed("--data.train", "x.jsonl").train == "x.jsonl"
    assert parsed("--data.train", "{path: x.jsonl, columns: {prompt: question}, weight: 2}").train == options
    assert parsed("--data.train.path", "x.jsonl", "--data.train.weight", "2").train == {"path": "x.jsonl", "weight": 2}
    world = f"{{class_path: {WORLD}, init_args: {{pairs: 12}}}}"
    train = parsed("--data.train", f"[a.jsonl, {{path: b.jsonl, weight: 0.5}}, {world}]").train
    assert train[:2] == ["a.jsonl", {"path": "b.jsonl", "weight": 0.5}]
    assert isinstance(train[2], PreferenceWorld)
    assert train[2].pairs == 12
    module = parsed("--data.train", world, "--data.ood.far", "{name: a/b, split: test}", "--data.id", "{path: y}")
    assert isinstance(module.train, PreferenceWorld)
    assert (module.ood, module.id) == ({"far": {"name": "a/b", "split": "test"}}, {"path": "y"})


def test_a_wrong_class_path_on_the_command_line_is_told_when_it_is_opened() -> None:
    module = parsed("--data.train", f"{{class_path: {WORLD}, init_args: {{pairz: 12}}}}")
    assert "PreferenceWorld accepts no 'pairz'" in mistake(module.train)


# Fingerprints


def test_equal_content_has_an_equal_fingerprint_and_any_change_another(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    one = write(tmp_path / "one" / "x.jsonl", rows)
    values: dict[str, Any] = {
        "file": one,
        "other content": write(tmp_path / "two" / "x.jsonl", rows * 2),
        "other name": write(tmp_path / "one" / "y.jsonl", rows),
        "label": {"path": one, "source": "people"},
        "columns": {"path": one, "columns": {"chosen": "rejected", "rejected": "chosen"}},
        "other columns": {"path": one, "columns": {"chosen": "rejected"}},
        "left out": {"path": one, "columns": {"prompt": None}},
        "folder": str(tmp_path / "one"),
        "other folder": str(tmp_path / "two"),
        "world": PreferenceWorld(pairs=10),
        "other seed": PreferenceWorld(pairs=10, seed=2),
        "other shift": PreferenceWorld(pairs=10, shift="new_style"),
        "other noise": PreferenceWorld(pairs=10, label_noise=0.0),
        "rows": Rows(rows),
        "other rows": Rows(rows * 2),
    }
    prints = {name: open_source(value, "data.train").fingerprint() for name, value in values.items()}
    assert len(set(prints.values())) == len(prints)
    assert all(len(print_) == 64 and int(print_, 16) >= 0 for print_ in prints.values())
    copy = write(tmp_path / "copy" / "x.jsonl", rows)
    assert open_source(copy, "data.train").fingerprint() == prints["file"]
    assert PreferenceWorld(pairs=10).fingerprint() == prints["world"]
    assert Rows([dict(rows[0])]).fingerprint() == prints["rows"]
    assert open_source({"path": one, "weight": 2}, "data.train").fingerprint() == prints["file"]


def test_shards_in_another_order_have_another_fingerprint(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {n}", "chosen": "a", "rejected": "b"} for n in range(2)]
    for folder, order in (("a", rows), ("b", rows[::-1])):
        for place, row in enumerate(order):
            write(tmp_path / folder / "set" / f"{place}.jsonl", [row])
    assert (
        open_source(str(tmp_path / "a" / "set"), "data.train").fingerprint()
        != open_source(str(tmp_path / "b" / "set"), "data.train").fingerprint()
    )


def test_the_worlds_version_is_raised_where_its_rows_change() -> None:
    """Where this fails although no dial was touched: raise VERSION in data/world/preferences.py, or runs reuse rows."""
    digests = [Source.fingerprint(PreferenceWorld(shift, pairs=60, seed=3))[:12] for shift in ("none", "new_style")]
    assert digests == ["65ee78c31f53", "7ae6e344b002"]
