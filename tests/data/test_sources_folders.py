"""Folders of shards, what `datasets` saves, Arrow files, local hub data sets, and what can be wrong with each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aplot_lightning.data.comparisons import Comparison
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.sources import Arrow, Folder, HubDataset, open_source
from aplot_lightning.errors import UserError
from tests.reading import read_comparisons


@pytest.fixture(autouse=True)
def _no_progress_bars() -> None:
    datasets.disable_progress_bars()


def pairs(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": f"q {n}"}], "chosen": f"yes {n}", "rejected": "no"}
        for n in range(start, stop)
    ]


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
        return path
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(value: Any) -> list[Comparison]:
    source = open_source(value, "data.train")
    ledger = SourceLedger(source.name)
    comparisons = read_comparisons(source, key="data.train", ledger=ledger)
    assert ledger.read == len(comparisons)
    return comparisons


def prompts(comparisons: Iterable[Comparison]) -> list[str]:
    return [comparison.prompt[0]["content"] for comparison in comparisons]


def mistake(value: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(value)
    message = str(caught.value)
    assert message.startswith("data.train: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet", "arrow"])
def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "pairs"
    for place in (2, 0, 1):
        write(folder / f"part-{place}.{ending}", pairs(2 * place, 2 * place + 2))
    (folder / "README.md").write_text("# Pairs")
    (folder / ".gitattributes").write_text("*.parquet")
    comparisons = read(str(folder))
    assert prompts(comparisons) == [f"q {n}" for n in range(6)]
    assert [c.where for c in comparisons] == [f"pairs/part-{n // 2}.{ending}:{n % 2 + 1}" for n in range(6)]
    assert {c.source for c in comparisons} == {"pairs"}


def test_plain_and_compressed_json_lines_go_together(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", pairs(1, 2))
    write(tmp_path / "a.jsonl.gz", pairs(0, 1))
    assert prompts(read({"path": str(tmp_path)})) == ["q 0", "q 1"]


def test_a_folder_that_is_named_by_a_dot_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "pairs" / "a.jsonl", pairs(0, 1))
    monkeypatch.chdir(tmp_path / "pairs")
    assert [c.where for c in read(".")] == ["pairs/a.jsonl:1"]


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
            "train",
            [0, 1],
        ),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"], "test", [2]),
        (["test_prefs-00000-of-00001.parquet", "train_prefs-00000-of-00001.parquet"], "train_prefs", [1]),
        (["train.jsonl.gz", "test.jsonl.gz"], "test", [1]),
        (["train-00000-of-00001.parquet"], None, [0]),
        (["training_pairs.jsonl"], None, [0]),
    ],
)
def test_splits_of_a_folder_are_never_mixed(
    tmp_path: Path, names: list[str], split: str | None, chosen: list[int]
) -> None:
    folder = tmp_path / "set"
    for place, name in enumerate(names):
        write(folder / name, pairs(place, place + 1))
    found = read({"path": str(folder), "split": split})
    assert prompts(found) == [f"q {n}" for n in chosen]
    if len(names) > 1:
        assert "name one by the option `split`" in mistake(str(folder))
        assert "'dev'" in mistake({"path": str(folder), "split": "dev"})
        assert found[0].source == f"set:{split}"


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(pairs(0, 10))
    saved.select([7, 1, 2]).save_to_disk(tmp_path / "plain", num_shards=2)
    comparisons = read(str(tmp_path / "plain"))
    assert prompts(comparisons) == ["q 7", "q 1", "q 2"]
    assert [c.where for c in comparisons] == [
        "plain/data-00000-of-00002.arrow:1",
        "plain/data-00000-of-00002.arrow:2",
        "plain/data-00001-of-00002.arrow:1",
    ]
    parts = datasets.DatasetDict({"train": saved, "test": saved.select([9])})
    parts.save_to_disk(tmp_path / "parts")
    assert prompts(read({"path": str(tmp_path / "parts"), "split": "test"})) == ["q 9"]
    assert len(read({"path": str(tmp_path / "parts"), "split": "train"})) == 10
    assert "train, test" in mistake(str(tmp_path / "parts"))
    assert "no split 'dev': it has train, test" in mistake({"path": str(tmp_path / "parts"), "split": "dev"})
    assert "saved without splits" in mistake({"path": str(tmp_path / "plain"), "split": "train"})
    datasets.DatasetDict({"only": saved}).save_to_disk(tmp_path / "one")
    assert len(read(str(tmp_path / "one"))) == 10


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="older releases of datasets have no such column")
def test_messages_that_datasets_keeps_as_json_are_messages(tmp_path: Path) -> None:
    features = datasets.Features(
        {"chosen": datasets.Json(), "rejected": datasets.List(datasets.Json()), "prompt": datasets.Value("string")}
    )
    row = {"prompt": "q"} | {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    saved = datasets.Dataset.from_list([row, {**row, "prompt": "r", "chosen": "text"}], features=features)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "x.parquet")
    for path in (tmp_path / "saved", tmp_path / "x.parquet"):
        first, second = read(str(path))
        assert first.responses[0] == ({"role": "assistant", "content": "chosen"},)
        assert second.responses[0] == ({"role": "assistant", "content": "text"},)


def test_a_bare_arrow_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.arrow", pairs(0, 3000))
    assert isinstance(open_source(str(path), "data.train"), Arrow)
    assert prompts(read(str(path))) == [f"q {n}" for n in range(3000)]
    damaged = path.read_bytes()[:-2000]
    path.write_bytes(damaged)
    assert "x.arrow' is damaged, or no Arrow file, after row 0" in mistake(str(path))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "is a folder without any shard"),
        (["README.md"], "is a folder without any shard"),
        (["notes.txt"], "is a folder that holds 'notes.txt', which is no shard"),
        (["a.jsonl", "b.csv"], "is a folder that holds 'b.csv', which is no shard"),
        (["a.jsonl", "inside/b.jsonl"], "is a folder that holds 'inside', which is no shard"),
        (["a.jsonl", "b.parquet"], "is a folder with shards of several kinds ('a.jsonl' and 'b.parquet')"),
    ],
)
def test_folders_that_are_not_clear(tmp_path: Path, files: list[str], said: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for place, name in enumerate(files):
        write(folder / name, pairs(place, place + 1))
    message = mistake(str(folder))
    assert said in message
    assert repr(str(folder)) in message


def test_what_was_saved_and_is_damaged(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(pairs(0, 3))
    saved.save_to_disk(tmp_path / "x")
    state = tmp_path / "x" / "state.json"
    for content in (
        "{",
        "[]",
        '{"_data_files": 3}',
        '{"_data_files": [{}]}',
        '{"_data_files": [{"filename": "../y"}]}',
    ):
        state.write_text(content)
        assert str(state) in mistake(str(tmp_path / "x"))
    state.write_text('{"_data_files": [{"filename": "gone.arrow"}]}')
    assert "gone.arrow" in mistake(str(tmp_path / "x"))
    (tmp_path / "x" / "dataset_dict.json").write_text('{"splits": ["gone"]}')
    assert "gone/state.json" in mistake(str(tmp_path / "x"))


def test_one_file_has_no_split_and_no_config(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", pairs(0, 1))
    assert "is one file and has no split 'train'" in mistake({"path": str(path), "split": "train"})
    with pytest.raises(UserError, match=r"data\.train\.config belongs to a hub data set"):
        read({"path": str(path), "config": "default"})


def test_a_hub_data_set_in_a_local_folder_with_split_and_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aplot_lightning.data.sources.hub._answers", lambda endpoint: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    for config in ("one", "two"):
        for split in ("train", "test"):
            write(folder / config / f"{split}.jsonl", [{**pair, "subset": f"{config} {split}"} for pair in pairs(0, 3)])
    listed = [{"config_name": name, "data_dir": name} for name in ("one", "two")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(listed)}\n---\n")
    source = open_source({"name": str(folder), "config": "two", "split": "test"}, "data.train")
    assert isinstance(source, HubDataset)
    assert {c.subset for c in read(source)} == {"two test"}
    assert next(where for where, _ in source.rows()) == f"{folder}:test:1"
    assert len(source.fingerprint()) == 64
    others = [
        {"config": "one", "split": "test"},
        {"config": "two", "split": "train"},
        {"config": "two", "split": "test[:2]"},
    ]
    prints = {open_source({"name": str(folder), **other}, "data.train").fingerprint() for other in others}
    assert len(prints | {source.fingerprint()}) == 4
    assert source.fingerprint() == HubDataset(str(folder), "test", "two").fingerprint()
    assert "no" in mistake({"name": str(folder), "config": "three"})


def test_a_folder_class_takes_its_path_and_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", pairs(0, 2))
    write(tmp_path / "test.jsonl", pairs(5, 6))
    assert prompts(read(Folder(str(tmp_path), split="test"))) == ["q 5"]
    assert "is a folder that cannot be read" in mistake(Folder(str(tmp_path / "nowhere")))
