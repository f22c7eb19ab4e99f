"""Rows and files that are unusual and right, or wrong in a way that a look at them does not show."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from aplot_lightning.data.comparisons import Comparison
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.sources import open_source
from aplot_lightning.errors import UserError
from tests.reading import read_comparisons

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> tuple[list[Comparison], SourceLedger]:
    source = open_source(str(path), "data.train")
    ledger = SourceLedger(source.name)
    return read_comparisons(source, key="data.train", ledger=ledger), ledger


TALK = [message("user", "q"), message("assistant", "What do you mean?"), message("user", "This.")]
TOOLS = [
    message("system", "Use the tools."),
    *TALK,
    {"role": "tool", "content": "42", "name": "calculator", "tool_call_id": "1"},
]
USUAL = {
    "several turns": {**PAIR, "prompt": TALK},
    "a system message": {**PAIR, "prompt": [message("system", "Be brief."), *TALK]},
    "a system message alone": {**PAIR, "prompt": [message("system", "Tell a story.")]},
    "a tool's role": {**PAIR, "prompt": TOOLS},
    "an empty prompt": {**PAIR, "prompt": ""},
    "no message before the answers": {**PAIR, "prompt": []},
    "right to left": {"prompt": "ما لون السماء؟", "chosen": "\u202bزرقاء\u202c", "rejected": "כחול"},
    "emoji of several characters": {"prompt": "👩‍👩‍👧‍👦?", "chosen": "🏳️‍🌈", "rejected": "🇩🇪"},
    "line separators and control characters": {"prompt": "a\u2028b\u0085c\x0bd", "chosen": "x\x00y", "rejected": "x"},
    "a megabyte": {"prompt": "word " * 200_000, "chosen": "a" * 500_000, "rejected": "b" * 500_000},
    "a thousand turns": {**PAIR, "prompt": TALK[:2] * 500 + TALK[:1]},
    "a whole number as id and rating": {**PAIR, "id": 7, "chosen_score": 4, "rejected_score": 3, "margin": 1},
}


@pytest.mark.parametrize("name", USUAL)
def test_what_is_unusual_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    row = USUAL[name]
    for escaped in (True, False):
        path = write(tmp_path / "x.jsonl", [json.dumps(row, ensure_ascii=escaped)])
        (comparison,), _ = read(path)
        prompt = row["prompt"] if isinstance(row["prompt"], list) else [message("user", row["prompt"])]
        assert [*comparison.prompt] == [{"role": m["role"], "content": m["content"]} for m in prompt]
        assert [[*response] for response in comparison.responses] == [
            [message("assistant", row[side])] for side in ("chosen", "rejected")
        ]


def test_a_mark_at_the_beginning_and_line_ends_of_windows(tmp_path: Path) -> None:
    text = "".join(json.dumps({**PAIR, "chosen": f"a\r\n{n}"}) + "\r\n" for n in range(3))
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    comparisons, ledger = read(path)
    assert ledger.read == 3
    assert [c.responses[0][0]["content"] for c in comparisons] == [f"a\r\n{n}" for n in range(3)]


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}', "not_json", "the key 'chosen' stands twice"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "x": [{"y": 1, "y": 1}]}', "not_json", "the key 'y' stands"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}', "missing_field", "not a finite number"),
        (
            '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": -Infinity}',
            "missing_field",
            "not a finite number",
        ),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "target": 1e999}', "missing_field", "not a finite number"),
        ({**PAIR, "margin": "2"}, "missing_field", '"margin" is not a number but str'),
        ({**PAIR, "chosen": 7}, "missing_field", '"chosen" is neither text nor messages but int'),
        ({**PAIR, "prompt": 7}, "missing_field", '"prompt" is neither text nor messages but int'),
        (
            {**PAIR, "chosen": [message("assistant", "a") | {"content": 7}]},
            "missing_field",
            '"chosen[0].content" is not',
        ),
        ({**PAIR, "chosen": [{"role": "assistant", "content": None, "tool_calls": []}]}, "missing_field", "null"),
        ({**PAIR, "chosen": "half \ud83d"}, "missing_field", "half a surrogate pair"),
        ([PAIR], "not_json", "one object a line is meant, as `jq -c '.[]'` writes a list of them"),
    ],
)
def test_what_is_wrong_is_counted_and_says_why(tmp_path: Path, row: Any, kind: str, said: str) -> None:
    _, ledger = read(write(tmp_path / "x.jsonl", [PAIR, row]))
    assert ledger.refused[kind] == sum(ledger.refused.values()) == 1
    ((where, why),) = ledger.locations[kind]
    assert where == "x.jsonl:2"
    assert said in why


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_rows_in_one_file_says_what_is_meant(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([PAIR, PAIR], indent=indent))
    with pytest.raises(UserError, match=r"one object a line is meant, as `jq -c '\.\[\]'` writes a list of them"):
        read(path)


def test_a_table_of_text_says_what_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, PAIR)
        writer.writeheader()
        writer.writerow(PAIR)
    with pytest.raises(UserError, match=r"x\.csv' is a table of text: give a JSONL"):
        read(path)
    with pytest.raises(UserError, match="not JSON: Expecting value at column 1; one object a line is meant"):
        read(path.rename(tmp_path / "x.txt"))
