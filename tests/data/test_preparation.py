"""Sources on disk: what is read back, what a key depends on, and the judgement of what was read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aplot_lightning.data.comparisons import Comparison, first_user_turn, parse_comparison, prompt_key, response_text
from aplot_lightning.data.contamination import near_matches
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.preparation import Cache, Corpus, PreparedSource, labels, prepare
from aplot_lightning.data.preparation import texts as texts_file
from aplot_lightning.data.preparation.facts import facts_of, hash_share
from aplot_lightning.data.preparation.texts import StoredComparisons, TextWriter
from aplot_lightning.data.sources import Source, open_source
from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.similarity import token_f1
from aplot_lightning.model.locate import ASSETS
from aplot_lightning.model.tokenizer import load_tokenizer
from tests.data.test_encoded import same

TOKENIZER = load_tokenizer(str(ASSETS / "world-decoder"), "model", "world-decoder")


def pair(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"question {number} ?", "chosen": f"yes {number}", "rejected": "no", **fields}


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def corpus(*paths: Path, cache: Path, max_length: int = 64, workers: int | None = None) -> Corpus:
    sources = [open_source(str(path), "data.train") for path in paths]
    return Corpus.prepared("data.train", sources, ConversationEncoder(TOKENIZER, max_length), Cache(cache), workers)


def account(judged: Corpus, on_bad_row: Any = "skip") -> list[SourceLedger]:
    ledgers = [SourceLedger(part.source.name) for part in judged.parts]
    judged.account(ledgers, on_bad_row)
    judged.use(judged.usable(), ledgers)
    return ledgers


def refused(ledger: SourceLedger) -> dict[str, int]:
    return {kind: count for kind, count in ledger.refused.items() if count}


# Texts

text = st.text(st.characters(codec="utf-8"), max_size=12)
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": text})
conversation = st.lists(message, max_size=3).map(tuple)
number = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    count = draw(st.integers(2, 4))
    places = st.integers(0, count - 1)
    return Comparison(
        prompt=draw(conversation),
        responses=tuple((*draw(conversation), {"role": "assistant", "content": draw(text)}) for _ in range(count)),
        pairs=tuple(draw(st.lists(st.tuples(places, places), min_size=1, max_size=3))),
        margin=draw(number),
        target=draw(number),
        scores=draw(st.none() | st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * count)),
        **{name: draw(text) for name in ("source", "subset", "id", "where")},
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(comparisons(), max_size=12))
def test_comparisons_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list[Comparison]) -> None:
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts_file, "BATCH", 5)
        patch.setattr(texts_file, "CHARACTERS", 60)  # long rows end a batch early
        with TextWriter(folder) as writer:
            for row in rows:
                writer.add(row)
    stored = StoredComparisons(folder)
    assert list(stored) == rows == [stored[place] for place in range(len(rows))]
    assert stored[1:4] == rows[1:4]
    places = np.arange(len(rows))[::-2]
    for name in ("id", "subset", "where", "source"):
        assert stored.labels(name, places) == labels(rows, name, places) == [getattr(rows[p], name) for p in places]
    assert list(pickle.loads(pickle.dumps(stored))) == rows
    with pytest.raises(IndexError):
        stored[len(rows)]


def test_facts_are_those_of_the_texts() -> None:
    rows = [
        parse_comparison(row, "f:1", "s")
        for row in (
            pair(1, margin=0.5, chosen_score=2, rejected_score=1),
            {"prompt": "rank", "responses": ["a b", "a c", "d"], "scores": [3, 1, 2], "target": 0.7},
            {"chosen": "just a text", "rejected": "another"},
        )
    ]
    facts = facts_of(rows)
    sides = [(c, winner, loser) for c in rows for winner, loser in c.pairs]
    for place, (c, winner, loser) in enumerate(sides):
        chosen, rejected = response_text(c, winner), response_text(c, loser)
        assert (facts["chosen_characters"][place], facts["rejected_characters"][place]) == (len(chosen), len(rejected))
        assert facts["similarity"][place] == np.float32(token_f1(chosen, rejected))
    assert facts["has_prompt"].tolist() == [True, True, False]
    assert [b"".join(int(half).to_bytes(8, "big") for half in key) for key in facts["prompt"]] == list(
        map(prompt_key, rows)
    )
    assert facts["place"].tolist() == [hash_share(first_user_turn(c)) for c in rows]
    np.testing.assert_array_equal(facts["margin"], np.float32([0.5, *[np.nan] * 4]))
    np.testing.assert_array_equal(facts["rejected_score"], np.float32([1, 1, 2, 1, np.nan]))
    assert {name: values.dtype for name, values in facts_of([]).items()} == {n: v.dtype for n, v in facts.items()}


# Keys


class Counting(ConversationEncoder):
    """Counts the comparisons that it encodes."""

    encoded = 0

    def encode_chunk(self, comparisons: Any) -> Any:
        Counting.encoded += len(comparisons)
        return super().encode_chunk(comparisons)


def work(path: Path, cache: Path, max_length: int = 64, truncation: Any = "left", tokenizer: Any = TOKENIZER) -> int:
    """Comparisons that had to be encoded to prepare a file."""
    before = Counting.encoded
    source = open_source(str(path), "data.train")
    prepare(source, Counting(tokenizer, max_length, truncation), Cache(cache))
    return Counting.encoded - before


def test_a_key_holds_all_that_decides_tokens_and_nothing_else(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "x.jsonl", map(pair, range(9))), tmp_path / "cache"
    (tmp_path / "elsewhere").mkdir()
    assert work(path, cache) == 9
    assert work(path, cache) == 0
    os.utime(path, (1, 1))
    assert work(path, cache) == 0
    assert work(Path(shutil.copy(path, tmp_path / "elsewhere" / "x.jsonl")), cache) == 0
    # the name is part of what is kept: of places, and of sources
    assert work(Path(shutil.copy(path, tmp_path / "y.jsonl")), cache) == 9
    assert work(path, cache, max_length=63) == 9
    assert work(path, cache, truncation="drop") == 9
    other = load_tokenizer(str(ASSETS / "world-decoder"), "model", "world-decoder")
    assert work(path, cache, tokenizer=other) == 0
    other.chat_template += " "
    assert work(path, cache, tokenizer=other) == 9
    assert len(list((cache / "read").glob("*/manifest.json"))) == 2
    write(path, map(pair, range(1, 10)))
    assert work(path, cache) == 9


# Judgement

LONG = "why " * 80
DIRTY: list[tuple[str | None, Any]] = [
    (None, pair(0)),
    ("not_json", "no"),
    ("duplicate", pair(0)),
    ("contradiction", {"prompt": "Swap", "chosen": "a", "rejected": "b"}),
    ("tie", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}),
    ("contradiction", {"prompt": "Swap", "chosen": "b", "rejected": "a"}),
    ("identical_after_truncation", {"prompt": "q", "chosen": f"{LONG}a", "rejected": f"{LONG}b"}),
    (None, pair(7, prompt=LONG)),
    (None, pair(8, chosen=LONG)),
    # of two faults the first in the order of KINDS counts
    ("duplicate", {"prompt": "q", "chosen": f"{LONG}a", "rejected": f"{LONG}b"}),
    ("missing_field", {"prompt": "x"}),
    ("leak", pair(9, prompt="Tested  prompt")),
    ("identical_after_truncation", {"prompt": "TESTED prompt", "chosen": f"{LONG}a", "rejected": f"{LONG}b"}),
]


def held_out(tmp_path: Path) -> Corpus:
    path = write(tmp_path / "tested.jsonl", [pair(1, prompt="tested prompt"), {"chosen": "a", "rejected": "b"}])
    return corpus(path, cache=tmp_path / "cache")


def dirty(tmp_path: Path, rows: list[tuple[str | None, Any]]) -> Corpus:
    judged = corpus(write(tmp_path / "x.jsonl", [row for _, row in rows]), cache=tmp_path / "cache")
    judged.refuse_leaks([held_out(tmp_path)])
    return judged


def test_every_row_is_used_or_counted_under_its_first_fault(tmp_path: Path) -> None:
    for _ in ("cold", "warm"):
        (ledger,) = account(dirty(tmp_path, DIRTY))
        kinds = Counter(kind for kind, _ in DIRTY)
        assert (ledger.read, ledger.used) == (len(DIRTY), kinds.pop(None))
        assert refused(ledger) == kinds
        for line, (kind, _) in enumerate(DIRTY, 1):
            assert kind is None or f"x.jsonl:{line}" in [where for where, _ in ledger.locations[kind]]
        messages = {kind: found[0][1] for kind, found in ledger.locations.items() if found}
        assert messages["contradiction"] == "prefers the opposite of x.jsonl:6"
        assert messages["duplicate"] == "the same as x.jsonl:1"
        assert messages["leak"] == "its prompt is also in an evaluation set"
        assert messages["identical_after_truncation"]
        assert ledger.as_dict()["cut"] == {"prompts": 2, "chosen": 1, "rejected": 0}


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in DIRTY if kind}))
def test_the_first_bad_row_stops_a_run_cold_and_warm(tmp_path: Path, kind: str) -> None:
    bad = [row for row in DIRTY if row[0] == kind]
    rows = [(None, pair(50)), *bad[:2], *(row for row in DIRTY if row[0] is not None)]
    rows = [DIRTY[0], *rows] if kind == "duplicate" else rows
    line = next(line for line, (fault, _) in enumerate(rows, 1) if fault is not None)
    for _ in ("cold", "warm"):
        with pytest.raises(UserError, match=rf"^data\.train: x\.jsonl:{line}: .*\({kind}\): mend or remove") as caught:
            account(dirty(tmp_path, rows), "error")
        assert "\n" not in str(caught.value)


def test_conflicts_are_found_through_all_sources(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [pair(1), pair(2), pair(3), pair(4)])
    swapped = {"prompt": "question 3 ?", "chosen": "no", "rejected": "yes 3"}
    two = write(tmp_path / "two.jsonl", [pair(2), swapped, pair(5)])
    judged = corpus(one, two, cache=tmp_path / "cache")
    first, second = account(judged)
    assert (refused(first), refused(second)) == ({"contradiction": 1}, {"contradiction": 1, "duplicate": 1})
    assert first.locations["contradiction"] == [("one.jsonl:3", "prefers the opposite of two.jsonl:2")]
    assert second.locations["contradiction"] == [("two.jsonl:2", "prefers the opposite of one.jsonl:3")]
    assert second.locations["duplicate"] == [("two.jsonl:1", "the same as one.jsonl:2")]
    used = judged.comparisons(judged.usable())
    assert [c.where for c in used] == ["one.jsonl:1", "one.jsonl:2", "one.jsonl:4", "two.jsonl:3"]
    assert used.labels("where", np.asarray([3, 0])) == ["two.jsonl:3", "one.jsonl:1"]
    encoded = judged.encoded(judged.usable())
    same(encoded, ConversationEncoder(TOKENIZER, 64).encode(list(used)))
    assert encoded.sources == ["one.jsonl", "two.jsonl"]
    assert encoded.origins.tolist() == [0, 0, 0, 1]
    assert encoded.kept.tolist() == [0, 1, 3, 6]


def test_more_than_ten_faults_are_counted_and_ten_are_shown(tmp_path: Path) -> None:
    rows = [pair(n) for n in range(15)] * 2 + ["no"] * 12
    (ledger,) = account(corpus(write(tmp_path / "x.jsonl", rows), cache=tmp_path / "cache"))
    assert refused(ledger) == {"duplicate": 15, "not_json": 12}
    assert [where for where, _ in ledger.locations["duplicate"]] == [f"x.jsonl:{line}" for line in range(16, 26)]
    assert [where for where, _ in ledger.locations["not_json"]] == [f"x.jsonl:{line}" for line in range(31, 41)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["no", pair(1), pair(1, rejected="yes 1", chosen="no")],
            r"none of the 3 rows of '.*x\.jsonl' can be used \(1 n",
        ),
        (["\n", "\n"], r"'.*x\.jsonl' has no rows"),
    ],
)
def test_a_source_without_a_usable_row(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.train: {message}"):
        account(corpus(write(tmp_path / "x.jsonl", rows), cache=tmp_path / "cache"))


def test_near_leaks_are_those_of_the_texts(tmp_path: Path) -> None:
    long = "Tell me, please, how the old clock in the tower of the town hall was made, and by whom "
    prompts = [f"{long}{tail}" for tail in ("then?", "indeed!", "1", "and why")] + ["another question", "tested prompt"]
    first = write(tmp_path / "one.jsonl", [pair(n, prompt=prompt) for n, prompt in enumerate(prompts)])
    second = write(tmp_path / "two.jsonl", [pair(10, prompt=f"{long}two"), {"chosen": "a", "rejected": "c"}])
    held = write(tmp_path / "held.jsonl", [pair(1, prompt=long), pair(1, prompt="tested prompt")])
    judged, other = (corpus(*paths, cache=tmp_path / "cache") for paths in ([first, second], [held]))
    judged.refuse_leaks([other])
    ledgers = account(judged)
    judged.count_near_leaks(judged.usable(), [other], ledgers)
    signatures = facts_of([*judged.comparisons(judged.usable())])["signature"]
    expected = near_matches(signatures, facts_of([*other.comparisons(other.usable())])["signature"])
    assert [ledger.near_leak for ledger in ledgers] == [int(expected[:5].sum()), int(expected[5:].sum())] == [4, 1]
    again = account(judged)
    judged.count_near_leaks(judged.usable()[2:], [other], again)
    assert [ledger.near_leak for ledger in again] == [2, 1]
    judged.count_near_leaks(judged.usable(), [], again)
    assert [ledger.near_leak for ledger in again] == [2, 1]


# Cold, warm, damaged, alone, helped


def views(judged: Corpus) -> EncodedComparisons:
    account(judged)
    return judged.encoded(judged.usable())


def contents(parts: Iterable[PreparedSource]) -> list[dict[str, bytes]]:
    return [{name: each[name].tobytes() for name in each} for part in parts for each in (part.facts, part.tokens)]


def test_helpers_and_caches_change_nothing(tmp_path: Path) -> None:
    many = {"prompt": "rank", "responses": ["a", "b", "c"], "scores": [3, 2, 1], "source": "other"}
    rows = [*(pair(n, margin=n / 7) for n in range(9 * 1024)), many]  # more than one helper's worth
    path = write(tmp_path / "x.jsonl", rows)
    cold = corpus(path, cache=tmp_path / "one", workers=1)
    warm = corpus(path, cache=tmp_path / "one", workers=1)
    helped = corpus(path, cache=tmp_path / "two", workers=2)
    assert contents(cold.parts) == contents(warm.parts) == contents(helped.parts)
    assert list(cold.parts[0].comparisons) == list(helped.parts[0].comparisons)
    same(views(cold), views(warm))
    assert account(cold)[0].as_dict() == account(warm)[0].as_dict()
    damaged = next((tmp_path / "one" / "tokens").glob("*/tokens.bin"))
    data = bytearray(damaged.read_bytes())
    data[5000] ^= 4
    damaged.write_bytes(data)
    with pytest.warns(UserWarning, match=r"damaged and is made again: .*tokens\.bin has another checksum"):
        mended = corpus(path, cache=tmp_path / "one")
    assert contents(mended.parts) == contents(cold.parts)


def test_a_template_that_refuses_is_said_with_key_and_place(tmp_path: Path) -> None:
    strict = load_tokenizer(str(ASSETS / "world-decoder"), "model", "world-decoder")
    strict.chat_template = "{{ raise_exception('only users') }}"
    source = open_source(str(write(tmp_path / "x.jsonl", [pair(1)])), "data.ood.far")
    with pytest.raises(UserError, match=r"^data\.ood\.far: x\.jsonl:1: .*only users"):
        Corpus.prepared("data.ood.far", [source], ConversationEncoder(strict), Cache(tmp_path / "cache"))
    assert not list(tmp_path.glob("cache/tokens/*/"))


def test_a_source_that_breaks_off_is_read_again(tmp_path: Path) -> None:
    class Breaking(Source):
        name = "rows"
        broken = True

        def rows(self) -> Any:
            yield "rows:1", pair(1)
            if self.broken:
                raise UserError("'rows' is damaged after row 1")

        def fingerprint(self) -> str:
            return "the same"

    source, encoder = Breaking(), ConversationEncoder(TOKENIZER)
    build: Callable[[], Corpus] = lambda: Corpus.prepared("data.id", [source], encoder, Cache(tmp_path))  # noqa: E731
    with pytest.raises(UserError, match=r"^data\.id: 'rows' is damaged after row 1$"):
        build()
    source.broken = False
    assert len(build()) == 1
