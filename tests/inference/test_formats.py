from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from aplot_lightning.inference import formats
from aplot_lightning.inference.formats import format_of

PLAIN = [
    [{"prompt": "a", "reward": None, "n": 1}, {"prompt": "é", "reward": None, "n": 2}],  # a column of nothing so far
    [{"prompt": "b", "reward": 0.5, "n": 2.5, "more": [1, 2]}],  # a new column, whole numbers become broken ones
    [{"reward": -1.0, "day": datetime.date(2026, 11, 24), "who": {"name": "x"}}],
]


def written(folder: Path, name: str, chunks) -> tuple[Path, list[str]]:
    path = folder / name
    each = format_of(path)
    path.write_bytes(b"".join(each.encode(rows) for rows in chunks))
    return path, each.finish(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_lines_are_the_rows(tmp_path, name):
    path, notes = written(tmp_path, name, PLAIN[:2])
    content = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    assert [json.loads(line) for line in content.decode().splitlines()] == PLAIN[0] + PLAIN[1]
    assert notes == []


@pytest.mark.parametrize("group", [1, 2, 100])
def test_a_table_holds_every_row_whatever_its_chunk_knew(tmp_path, monkeypatch, group):
    monkeypatch.setattr(formats, "GROUP_ROWS", group)
    path, notes = written(tmp_path, "a.parquet", PLAIN)
    names = ["prompt", "reward", "n", "more", "day", "who"]
    expected = [{name: row.get(name) for name in names} for rows in PLAIN for row in rows]
    assert pq.read_table(path).to_pylist() == expected
    assert pq.read_schema(path).names == names
    assert notes == []


MESSAGES = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    "chunks",
    [
        [[{"x": "text", "n": 1}, {"x": MESSAGES, "n": 2}]],
        [[{"x": "text", "n": 1}], [{"x": MESSAGES, "n": 2}]],
        [[{"x": "text", "n": 1}], [{"x": "text", "n": 2}, {"x": MESSAGES, "n": 3}], [{"x": None, "n": 4}]],
        [[{"x": {}, "n": 1}]],
        [[{"x": "half \ud83d", "n": 1}], [{"x": "whole", "n": 2}]],
        [[{"x": 10**30, "n": 1}]],
    ],
)
def test_a_column_of_several_types_is_json_and_that_is_told(tmp_path, chunks):
    path, notes = written(tmp_path, "a.parquet", chunks)
    rows = pq.read_table(path).to_pylist()
    assert [row["n"] for row in rows] == [row["n"] for chunk in chunks for row in chunk]
    read = [None if row["x"] is None else json.loads(row["x"]) for row in rows]
    assert read == [row["x"] for chunk in chunks for row in chunk]
    assert notes == ["the column 'x' holds values of several types: it is written as JSON text"]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    for name in ("a.jsonl.gz", "a.parquet"):
        first = written(tmp_path, name, PLAIN)[0].read_bytes()
        assert written(tmp_path, name, PLAIN)[0].read_bytes() == first
