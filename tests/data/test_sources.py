"""Files good and broken, what a config's text names, and that every row ends in exactly one place."""

from __future__ import annotations

import gzip
import json
import random
import socket
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aplot_lightning.data.comparisons import KINDS, RowError, response_text
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.sources import HubDataset, JsonLines, Parquet, Source, open_source
from aplot_lightning.errors import UserError
from tests.reading import read_comparisons

REAL = Path(__file__).parents[2] / "../shared/data"
GOOD = [{"prompt": f"Question {n}: größer?", "chosen": f"Yes, {n} 🙂", "rejected": f"No, {n}"} for n in range(8)]


class Rows(Source):
    name = "rows"

    def __init__(self, rows):
        self._rows = rows

    def rows(self):
        yield from ((f"rows:{number}", row) for number, row in enumerate(self._rows, 1))


def text_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(value, **options):
    source = open_source(value, "data.train")
    ledger = SourceLedger(source.name)
    return read_comparisons(source, key="data.train", ledger=ledger, **options), ledger


def mistake(value, **options):
    """The one-line message of the mistake that reading `value` is."""
    with pytest.raises(UserError) as caught:
        read(value, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("data.train")
    return message


# Files as they should be


@pytest.mark.parametrize(
    "encode",
    [
        str.encode,
        lambda text: gzip.compress(text.encode()),
        lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip("\n").replace("\n", "\n\n  \n").encode(),
        lambda text: gzip.compress(text[:100].encode()) + gzip.compress(text[100:].encode()),
    ],
    ids=["plain", "gzip", "BOM and CRLF", "empty lines", "two gzip members"],
)
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.json", "pairs"])
def test_json_lines_by_content(tmp_path, name, encode):
    comparisons, ledger = read(write(tmp_path / name, encode(text_of(GOOD))))
    assert [c.responses[0][0]["content"] for c in comparisons] == [row["chosen"] for row in GOOD]
    assert (ledger.read, ledger.used) == (8, 8)
    assert {c.source for c in comparisons} == {name}


def test_places_are_lines_of_the_file(tmp_path):
    path = write(tmp_path / "pairs.jsonl", "\n" + text_of(GOOD[:1]) + "\n\n" + text_of(GOOD[1:2]))
    assert [where for where, _ in JsonLines(path).rows()] == ["pairs.jsonl:2", "pairs.jsonl:5"]


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs"])
def test_parquet(tmp_path, name):
    talk = {
        "prompt": [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]],
        "chosen": ["x", "y"],
        "rejected": ["u", "v"],
        "margin": [1.5, None],
    }
    pq.write_table(pa.table(talk), tmp_path / name)
    comparisons, ledger = read(str(tmp_path / name))
    assert [c.prompt[0]["content"] for c in comparisons] == ["a", "b"]
    assert [c.margin for c in comparisons] == [1.5, None]
    assert [c.where for c in comparisons] == [f"{name}:1", f"{name}:2"]
    assert ledger.read == 2


def test_a_source_is_itself():
    source = Rows(GOOD)
    assert open_source(source, "data.train") is source


# A file with known faults


DIRTY = [
    (None, GOOD[0]),
    ("not_json", '{"prompt": "q", "chosen": '),
    ("not_json", '["q", "a", "b"]'),
    ("not_json", '{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}'),
    ("not_json", '{"prompt": [{"role": "user", "content": "q", "content": "r"}], "chosen": "a", "rejected": "b"}'),
    ("not_json", b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}'),
    ("not_json", "[" * 100_000),
    ("not_json", "1" * 5_000),
    ("missing_field", {"prompt": "q", "chosen": "a"}),
    ("missing_field", {"prompt": 7, "chosen": "a", "rejected": "b"}),
    ("missing_field", '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}'),
    ("empty_response", {"prompt": "q", "chosen": "a", "rejected": " "}),
    ("identical_responses", {"prompt": "q", "chosen": "a", "rejected": "a"}),
    ("identical_responses", {"prompt": "q2", "chosen": "a", "rejected": "a"}),
    ("tie", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}),
    ("contradiction", {"prompt": "swap", "chosen": "a", "rejected": "b"}),
    ("contradiction", {"prompt": "swap", "chosen": "a", "rejected": "b"}),
    (None, {"prompt": "swap ", "chosen": "a", "rejected": "b"}),
    ("duplicate", {**GOOD[0], "id": "again"}),
    ("contradiction", {"prompt": [{"role": "user", "content": "swap"}], "chosen": "b", "rejected": "a"}),
    (
        "duplicate",
        {"prompt": GOOD[0]["prompt"], "responses": [GOOD[0]["rejected"], GOOD[0]["chosen"]], "ranks": [2, 1]},
    ),
    (None, {"prompt": "soft", "chosen": "a", "rejected": "b", "target": 0.8}),
    (None, {"prompt": "soft", "chosen": "b", "rejected": "a", "target": 0.2}),
    (None, {"prompt": "open", "chosen": "a", "rejected": "b", "target": 0.5}),
    (None, {"prompt": "open", "chosen": "b", "rejected": "a", "target": 0.5}),
    ("contradiction", {"prompt": "many", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}),
    ("contradiction", {"prompt": "many", "responses": ["a", "b", "d"], "scores": [2, 1, 3]}),
    (None, {"prompt": "many", "responses": ["d", "e", "c"], "scores": [2, 1, 2]}),
]


def line_of(row):
    if isinstance(row, dict):
        row = json.dumps(row)
    return row.encode() if isinstance(row, str) else row


def dirty_file(path):
    return write(path, b"\n".join(line_of(row) for _, row in DIRTY))


def test_every_fault_is_counted_with_its_line(tmp_path):
    comparisons, ledger = read(dirty_file(tmp_path / "dirty.jsonl"))
    kinds = Counter(kind for kind, _ in DIRTY)
    assert ledger.read == len(DIRTY)
    assert ledger.used == len(comparisons) == kinds.pop(None)
    assert ledger.refused == dict.fromkeys(KINDS, 0) | kinds
    lines = {f"dirty.jsonl:{line}": kind for line, (kind, _) in enumerate(DIRTY, 1)}
    assert {where: kind for kind, found in ledger.locations.items() for where, _ in found} == {
        where: kind for where, kind in lines.items() if kind
    }
    assert [c.where for c in comparisons] == [where for where, kind in lines.items() if kind is None]
    assert all("\n" not in message for found in ledger.locations.values() for _, message in found)
    assert ledger.locations["contradiction"][0][1] == "prefers the opposite of dirty.jsonl:20"
    assert ledger.locations["duplicate"][0][1] == "the same as dirty.jsonl:1"


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in DIRTY if kind}))
def test_on_bad_row_error_stops_at_the_row(tmp_path, kind):
    path = write(tmp_path / "x.jsonl", b"\n".join(line_of(row) for other, row in DIRTY if other in (None, kind)))
    message = mistake(path, on_bad_row="error")
    assert message.startswith("data.train: x.jsonl:")
    for part in (kind, path, "data.on_bad_row"):
        assert part in message


def test_on_bad_row_error_lets_good_rows_pass(tmp_path):
    assert len(read(write(tmp_path / "x.jsonl", text_of(GOOD)), on_bad_row="error")[0]) == len(GOOD)


def test_a_source_without_a_usable_row_says_why(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"question": "q"}\n' * 12 + "no json\n")
    message = mistake(path)
    assert f"none of the 13 rows of {path!r} can be used (1 not_json, 12 missing_field; first: x.jsonl:13: " in message


# What a config may name by mistake


def test_mistakes_about_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
    for name, content, part in [
        ("empty.jsonl", b"", "no rows"),
        ("blank.jsonl", b"\n  \n\r\n", "no rows"),
        ("empty.jsonl.gz", gzip.compress(b""), "no rows"),
        ("picture.jsonl", png, "no text"),
        ("utf16.jsonl", text_of(GOOD).encode("utf-16"), "no text"),
        ("random.bin", random.Random(0).randbytes(5000), "no text"),
        ("zipped.jsonl.gz", gzip.compress(png), "none of the"),
        ("bad.parquet", b"PAR1" + png, "damaged"),
        ("array.json", json.dumps(GOOD, indent=1), "one object a line is meant"),
    ]:
        message = mistake(write(tmp_path / name, content))
        assert part in message, message
        assert name in message
    for value, part in [
        ("nothing.jsonl", "no such file: 'nothing.jsonl'"),
        ("./nothing", "no such file: 'nothing'"),
        ("/nothing/at all", "no such file"),
        ("~/nothing.parquet", "no such file"),
        ("~no-such-user-here/x", "no such file"),
        ("https://example.org/x.jsonl", "no such file"),
        ("a\0b", "no such file"),
        ("x" * 300 + ".jsonl", "cannot be read"),
        ("folder", "is a folder"),
        ("./folder", "is a folder"),
        ("/dev/null", "no regular file"),
        (3, "is 3"),
        (None, "is None"),
    ]:
        assert part in mistake(value), value


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "secret.jsonl", text_of(GOOD))

    def refuse(self, mode):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # root, as containers are, may read any file
    assert "may not be read" in mistake(path)
    assert path in mistake(path)


def test_damaged_gzip_says_how_far_it_was_read(tmp_path):
    lines = text_of({**row, "id": random.Random(n).randbytes(200).hex()} for n, row in enumerate(GOOD * 40))
    packed = gzip.compress(lines.encode())
    cut = mistake(write(tmp_path / "cut.jsonl.gz", packed[: len(packed) // 2]))
    assert 50 < int(cut.split("after line ")[1].split(" ")[0]) < 320
    flipped = bytearray(packed)
    flipped[-6] ^= 255
    assert "damaged after line 320" in mistake(write(tmp_path / "flipped.jsonl.gz", bytes(flipped)))
    assert "damaged after line 320" in mistake(write(tmp_path / "more.jsonl.gz", packed + b"more"))


def test_sources_given_as_classes_check_their_files(tmp_path):
    for source in (JsonLines(str(tmp_path / "no.jsonl")), Parquet(str(tmp_path / "no.parquet"))):
        assert "data.train: no such file" in mistake(source)
    assert "no text" in mistake(JsonLines(write(tmp_path / "x", b"\0\1\2")))
    assert "no Parquet file" in mistake(Parquet(write(tmp_path / "x.jsonl", text_of(GOOD))))


# Hub data sets


def test_hub_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value, name, split in [
        ("Anthropic/hh-rlhf", "Anthropic/hh-rlhf", "train"),
        ("Anthropic/hh-rlhf:test", "Anthropic/hh-rlhf", "test"),
        ("imdb:train[:10%]", "imdb", "train[:10%]"),
    ]:
        source = open_source(value, "data.train")
        assert isinstance(source, HubDataset)
        assert (source.dataset, source.split, source.config) == (name, split, None)


def test_hub_rows_and_mistakes(monkeypatch):
    import datasets
    from huggingface_hub import constants

    def connect(address, timeout):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("aplot_lightning.data.sources.hub.getproxies", dict)
    asked, offline = [], []

    def load(name, config, split, streaming=False):
        asked.append((name, config, split))
        offline.append(constants.HF_HUB_OFFLINE)
        if name == "no/such":
            raise ConnectionError("Couldn't reach\nthe hub")
        return datasets.Dataset.from_list(GOOD)

    monkeypatch.setattr(datasets, "load_dataset", load)
    comparisons, _ = read(HubDataset("some/pairs", "test", "clean"))
    assert asked == [("some/pairs", "clean", "test")]
    assert [c.where for c in comparisons] == [f"some/pairs:test:{number}" for number in range(1, 9)]
    message = mistake("no/such")
    for part in ("'no/such'", "Couldn't reach the hub", "network", "JSONL"):
        assert part in message
    assert offline == [True, True]  # else the client tries again and again, half a minute and ten lines long
    assert constants.HF_HUB_OFFLINE is False


# Properties


short = st.sampled_from(["a", "b", " ", ""])
values = st.one_of(short, st.none(), st.integers(), st.lists(short, max_size=2))
pairs = st.fixed_dictionaries(
    {}, optional={"prompt": values, "chosen": values, "rejected": values, "target": st.sampled_from([0.2, 0.5, 0.9, 2])}
)
clean = st.fixed_dictionaries({"prompt": st.just("q"), "chosen": short, "rejected": short})
lists = st.fixed_dictionaries(
    {"responses": st.lists(short, max_size=3), "scores": st.lists(st.integers(0, 2), max_size=3)}
)
anything = st.one_of(pairs, clean, clean, lists, st.just(RowError("not_json", "no JSON")), st.integers())


@settings(max_examples=60, deadline=None)
@given(st.lists(anything, max_size=12))
def test_every_row_is_in_exactly_one_place(rows):
    ledger = SourceLedger("rows")
    try:
        used = read_comparisons(Rows(rows), key="data.train", ledger=ledger)
    except UserError:
        used = []
    assert ledger.read == len(rows)
    assert len(used) == ledger.used
    places = [where for found in ledger.locations.values() for where, _ in found] + [c.where for c in used]
    if max(ledger.refused.values()) <= 10:
        assert sorted(places) == sorted(f"rows:{number}" for number in range(1, len(rows) + 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("abc"), st.sampled_from("abc")), max_size=12))
def test_contradictions_and_duplicates_by_a_double_loop(triples):
    """The kinds that a comparison of every row with every other gives."""
    expected = []
    for place, (prompt, chosen, rejected) in enumerate(triples):
        if chosen == rejected:
            expected.append("identical_responses")
        elif (prompt, rejected, chosen) in triples:
            expected.append("contradiction")
        elif (prompt, chosen, rejected) in triples[:place]:
            expected.append("duplicate")
    ledger = SourceLedger("rows")
    rows = [dict(zip(("prompt", "chosen", "rejected"), triple, strict=True)) for triple in triples]
    try:
        used = len(read_comparisons(Rows(rows), key="data.train", ledger=ledger))
    except UserError:
        used = 0
    assert {kind: count for kind, count in ledger.refused.items() if count} == Counter(expected)
    assert used == len(triples) - len(expected)


def good_bytes(tmp_path, kind):
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "good.parquet")
        return (tmp_path / "good.parquet").read_bytes()
    text = text_of(GOOD).encode()
    return gzip.compress(text, mtime=0) if kind == "gzip" else text


def mutated(content, draw):
    content = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        start = draw.randrange(len(content))
        copied = bytes(content[: draw.randrange(99)])
        piece = draw.choice([b"", b"\n", b"\0", b'"', b"{", b"NaN", draw.randbytes(3), copied])
        content[start : start + draw.choice([0, 1, 1, 1, 50])] = piece
    return bytes(content)


@pytest.mark.parametrize(("kind", "files"), [("plain", 300), ("gzip", 200), ("parquet", 60)])
def test_mutated_files_end_in_counts_or_a_mistake(tmp_path, kind, files):
    good = good_bytes(tmp_path, kind)
    draw = random.Random(7)
    messages = []
    for number in range(files):
        path = write(tmp_path / f"mutated-{number}", mutated(good, draw))
        ledger = SourceLedger("mutated")
        try:
            used = read_comparisons(open_source(path, "data.train"), key="data.train", ledger=ledger)
        except UserError as error:
            messages.append((path, str(error)))
            continue
        assert ledger.read == len(used) + sum(ledger.refused.values())
    assert all(path in message and "\n" not in message for path, message in messages)
    mistakes = len(messages) / files
    assert mistakes < 0.3 if kind == "plain" else mistakes > 0.5


# Real pairs


@pytest.mark.parametrize(
    ("name", "rows", "longer_wins"),
    [
        ("hh-helpful", 6183, 0.55),
        ("hh-harmless", 2303, 0.44),
        ("hhh-alignment", 221, 0.63),
        ("llmbar", 419, 0.27),
    ],
)
def test_real_pairs(name, rows, longer_wins):
    path = REAL / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here: it is only beside the development checkout")
    comparisons, ledger = read(str(path))
    assert (ledger.read, ledger.used) == (rows, rows)
    assert sum(len(c.pairs) for c in comparisons) == rows
    longer = [
        len(response_text(c, winner)) > len(response_text(c, loser)) for c in comparisons for winner, loser in c.pairs
    ]
    assert round(sum(longer) / rows, 2) == longer_wins


def test_real_pairs_as_raw_transcripts():
    """The dialogues of HH-RLHF, written back as they are published, give the same comparisons."""
    path = REAL / "hh-helpful.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here: it is only beside the development checkout")
    speaker = {"user": "Human", "assistant": "Assistant"}
    expected, rows = [], []
    for comparison in read(str(path))[0]:
        whole = [comparison.prompt + response for response in comparison.responses]
        if any(message["content"] != message["content"].strip() for messages in whole for message in messages):
            continue
        texts = ["".join(f"\n\n{speaker[m['role']]}: {m['content']}" for m in messages) for messages in whole]
        rows.append({"chosen": texts[0], "rejected": texts[1]})
        expected.append((comparison.prompt, comparison.responses))
    assert len(rows) > 5000
    comparisons, _ = read(Rows(rows))
    assert [(c.prompt, c.responses) for c in comparisons] == expected
