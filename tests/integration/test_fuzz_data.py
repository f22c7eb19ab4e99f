"""2,000 mutated files: each is read to an exact account or is a user's mistake of one line, never anything else."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aplot_lightning import PreferenceDataModule
from aplot_lightning.data.comparisons import KINDS, RowError, parse_comparison
from aplot_lightning.data.sources import open_source
from aplot_lightning.errors import UserError
from aplot_lightning.model.locate import ASSETS
from aplot_lightning.model.tokenizer import load_tokenizer

LAYOUTS = sorted((Path(__file__).parents[1] / "data" / "layouts").glob("*.jsonl"))
FILES = 2000
TRAINED = 12  # every so many-th file goes all the way to optimizer batches
COLUMNS = {
    "nectar": {"responses": "answers.answer", "ranks": "answers.rank", "source": None},
    "ultrafeedback": {
        "prompt": "instruction",
        "responses": "completions.response",
        "scores": "completions.overall_score",
    },
    "other_names": {"prompt": "question", "chosen": "output.best", "rejected": "output.worst", "margin": "strength"},
}
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\x00",
    "\ud800",
    [],
    {},
    [[]],
]
PIECES = [
    b"",
    b"\n",
    b"\r\n",
    b"\0",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\\",
    b"\\ud800",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
]
PIECES += [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b"null", b"\xe2\x80\xa8", b'"chosen":1,']


def flip(content: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def splice(content: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(content) + 1)
        content[start : start + draw.choice([0, 1, 1, 30])] = draw.choice([*PIECES, draw.randbytes(3)])
    return bytes(content)


def cut(content: bytearray, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return bytes(draw.choice([content[:stop], content[start:], content[:start] + content[stop:]]))


def reorder_lines(content: bytearray, draw: random.Random) -> bytes:
    lines = bytes(content).splitlines(keepends=True)
    lines += draw.choices(lines, k=draw.randint(0, 3))
    draw.shuffle(lines)
    return b"".join(lines)


def shuffle_brackets(content: bytearray, draw: random.Random) -> bytes:
    places = [place for place, byte in enumerate(content) if byte in b'{}[],:"']
    some = draw.sample(places, min(len(places), draw.randint(2, 12)))
    values = [content[place] for place in some]
    draw.shuffle(values)
    for place, value in zip(some, values, strict=True):
        content[place] = value
    return bytes(content)


def swap_types(content: bytearray, draw: random.Random) -> bytes:
    rows = [json.loads(line) for line in bytes(content).splitlines()]
    for _ in range(draw.randint(1, 3)):
        _change(draw.choice(rows), draw)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _change(value: Any, draw: random.Random) -> None:
    """Puts something odd somewhere into a row, or takes something away, or copies it to another place."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = draw.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and draw.random() < 0.7:
            value = inner
            continue
        odd = draw.choice([*ODD, value[draw.choice(keys)]])
        if draw.random() < 0.2:
            del value[key]
        else:
            value[key] = odd
        return


def as_table(content: bytes, ending: str) -> bytes:
    table = pa.Table.from_pylist([json.loads(line) for line in content.splitlines()])
    sink = pa.BufferOutputStream()
    if ending == "parquet":
        pq.write_table(table, sink)
    else:
        with (pa.ipc.new_stream if ending == "arrow" else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


BYTES: list[Callable[[bytearray, random.Random], bytes]] = [flip, splice, cut]
TEXTS = [*BYTES, reorder_lines, shuffle_brackets, swap_types, swap_types]


def mutated(draw: random.Random) -> tuple[str, str, bytes]:
    """A layout, the ending of a file, and its content: lines changed and then packed, or packed and then changed."""
    path = draw.choice(LAYOUTS)
    original = path.read_bytes()
    ending = draw.choice(["jsonl"] * 6 + ["jsonl.gz"] * 2 + ["parquet", "arrow", "feather"])
    if ending == "jsonl":
        return path.stem, ending, draw.choice(TEXTS)(bytearray(original), draw)
    if ending == "jsonl.gz":
        if draw.random() < 0.3:
            return path.stem, ending, gzip.compress(draw.choice(TEXTS)(bytearray(original), draw), mtime=0)
        return path.stem, ending, draw.choice(BYTES)(bytearray(gzip.compress(original, mtime=0)), draw)
    return path.stem, ending, draw.choice(BYTES)(bytearray(as_table(original, ending)), draw)


def is_one_line(error: Exception) -> bool:
    return 0 < len(str(error)) < 2000 and "\n" not in str(error) and "\r" not in str(error)


def parsed(value: Any) -> Counter[str]:
    """How many rows became comparisons, and how many were refused under each kind."""
    outcomes: Counter[str] = Counter()
    source = open_source(value, "data.train")
    for where, row in source.rows():
        assert where.startswith(source.name)
        refused = row if isinstance(row, RowError) else None
        try:
            comparison = None if refused else parse_comparison(row, where, source.name)
        except RowError as error:
            refused = error
        outcomes[refused.kind if refused else "used"] += 1
        assert refused.kind in KINDS and is_one_line(refused) if refused else comparison.pairs  # type: ignore[union-attr]
    return outcomes


def outcome(work: Callable[[], Any], path: Path) -> Any:
    """What the work gives, or the mistake that it is."""
    try:
        return work()
    except UserError as error:
        return error
    except Exception as error:
        raise AssertionError(f"{path}: {type(error).__name__}: {error}") from error


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(ASSETS / "world-decoder"), "model", "world-decoder")


def account_of(value: Any, tokenizer: Any, cache: Path) -> dict[str, Any]:
    """The account of a run that trains on this; every batch of its first epoch is drawn."""
    data = PreferenceDataModule(value, validation_share=0.0, id_share=0.0, batch_size=2, cache_dir=cache, max_length=64)
    data.tokenizer = tokenizer
    data.setup()
    assert data.training_pairs is not None
    drawn = [c for offset in range(data.plan.batches_per_epoch) for c in data.plan.batch(0, offset)]
    assert sorted(drawn) == list(range(len(data.training_pairs.first_pair) - 1))
    return data.report.as_dict()["train"]["total"]


def agree(account: dict[str, Any], rows: Counter[str]) -> None:
    assert account["read"] == sum(rows.values()) == account["used"] + sum(account["refused"].values())
    assert {kind: account["refused"][kind] for kind in KINDS[:5]} == {kind: rows[kind] for kind in KINDS[:5]}
    assert 0 < account["used"] <= rows["used"]


def test_mutated_files_end_in_an_exact_account_or_a_mistake(tmp_path: Path, tokenizer: Any) -> None:
    draw = random.Random(20261124)
    ends: Counter[str] = Counter()
    for number in range(FILES):
        layout, ending, content = mutated(draw)
        path = tmp_path / f"{number}-{layout}.{ending}"
        path.write_bytes(content)
        value = {"path": str(path), "columns": COLUMNS[layout]} if layout in COLUMNS else str(path)
        rows = outcome(partial(parsed, value), path)
        ends["mistake" if isinstance(rows, UserError) else "read"] += 1
        if isinstance(rows, UserError):
            assert is_one_line(rows)
            assert path.name in str(rows)
        if number % TRAINED == 0:
            account = outcome(partial(account_of, value, tokenizer, tmp_path / "cache"), path)
            ends["refused" if isinstance(account, UserError) else "trained"] += 1
            if isinstance(account, UserError):
                assert is_one_line(account)
            else:
                agree(account, rows)
        path.unlink()
    # all ends are met often
    assert min(ends["read"], ends["mistake"]) > FILES / 8, ends
    assert min(ends["trained"], ends["refused"]) > FILES / TRAINED / 8, ends
