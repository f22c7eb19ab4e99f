"""Near leaks: estimates beside exact Jaccard similarities, and what is found beside what is similar."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.data import contamination
from aplot_lightning.data.comparisons import normalised_text
from aplot_lightning.data.contamination import EMPTY, HASHES, near_matches, signatures

REAL = Path("/work/shared/data/hh-helpful.jsonl.gz")
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rk", "st", "le", "po")]
PROMPT = "Can you tell me how the old lighthouse near the harbour was built, and by whom?"


def shingles(text: str) -> set[str]:
    text = normalised_text(text)
    return {text[place : place + 5] for place in range(max(1, len(text) - 4))} if text else set()


def jaccard(one: str, other: str) -> float:
    mine, its = shingles(one), shingles(other)
    return len(mine & its) / len(mine | its) if mine | its else 0.0


def estimates(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one == other).mean(axis=1)


def texts_and_changes(generator: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """Random texts, and each with between none and half of its words replaced."""
    texts, changed = [], []
    for _ in range(count):
        words = generator.choice(WORDS, generator.integers(5, 120))
        other = np.where(generator.random(len(words)) < generator.choice([0, 0.02, 0.05, 0.1, 0.5]), "else", words)
        texts.append(" ".join(words))
        changed.append(" ".join(other))
    return texts, changed


def near(one: str, other: str) -> bool:
    return bool(near_matches(signatures([one]), signatures([other]))[0])


def test_estimates_are_unbiased_and_as_exact_as_96_hashes_can_be():
    texts, changed = texts_and_changes(np.random.default_rng(0), 600)
    exact = np.array([jaccard(*both) for both in zip(texts, changed, strict=True)])
    errors = estimates(signatures(texts), signatures(changed)) - exact
    deviation = np.sqrt(exact * (1 - exact) / HASHES)
    assert abs(errors.mean()) < 0.005
    assert (np.abs(errors) <= 4 * deviation + 1e-9).mean() > 0.998
    assert (errors[exact == 1] == 0).all()


def test_numbers_are_the_low_halves_of_those_of_datasketch():
    generator = np.random.default_rng(1)
    text = "".join(generator.choice(list("abcdef ghi"), 20_000))  # longer than a piece
    (piece,) = contamination._shingles(normalised_text(PROMPT))
    whole = np.concatenate(list(contamination._shingles(normalised_text(text))))
    assert len(whole) == len(normalised_text(text)) - 4
    assert len(piece) == len(normalised_text(PROMPT)) - 4
    for hashes, given_text in ((piece, PROMPT), (whole, text)):
        sketch = MinHash(num_perm=HASHES, seed=contamination.SEED, hashfunc=int)
        for value in hashes.tolist():
            sketch.update(value)
        np.testing.assert_array_equal(signatures([given_text])[0], sketch.hashvalues & 0xFFFF)


def test_different_shingles_have_different_hashes():
    text = " ".join(WORDS)
    found = np.concatenate(list(contamination._shingles(text)))
    assert len(np.unique(found)) == len(shingles(text))
    assert found.max() < 1 << 32


@pytest.mark.parametrize("kind", ["random", "real"])
def test_recall_and_precision_beside_exact_similarity(kind):
    generator = np.random.default_rng(2)
    if kind == "random":
        tested, texts = texts_and_changes(generator, 200)
    else:
        if not REAL.is_file():
            pytest.skip(f"{REAL} is not here")
        with gzip.open(REAL, "rt", encoding="utf-8") as file:
            tested = list(
                {json.loads(line)["prompt"][-1]["content"]: 0 for line, _ in zip(file, range(500), strict=False)}
            )
        share = generator.choice([0, 0.01, 0.03, 0.1, 0.3], len(tested))
        texts = [
            "".join(
                "#" if chance < limit else letter
                for letter, chance in zip(text, generator.random(len(text)), strict=True)
            )
            for text, limit in zip(tested, share, strict=True)
        ]
    sets = [shingles(other) for other in tested]
    similarity = np.array([max(len(mine & its) / len(mine | its) for its in sets) for mine in map(shingles, texts)])
    found = near_matches(signatures(texts), signatures(tested))
    assert found[similarity >= 0.9].mean() > 0.98
    assert found[similarity < 0.65].mean() < 0.01
    assert min((similarity >= 0.9).sum(), (similarity < 0.65).sum()) > 30


def test_a_changed_word_is_near_and_another_question_is_not():
    assert near(PROMPT, PROMPT.replace("harbour", "harbor"))
    assert near(PROMPT, PROMPT.upper().replace(" ", "\n\t"))
    assert near(PROMPT, PROMPT + " Thanks!")
    assert not near(PROMPT, "Can you tell me how the new bridge over the river was paid for, and when?")
    assert near(
        "教えてください、古い灯台はどのように建てられたのですか。",
        "教えてください、古い灯台はどのように建てられたのですか?",
    )
    assert not near(
        "教えてください、古い灯台はどのように建てられたのですか。",
        "ロンドンで一番おいしいレストランはどこにありますか。",
    )


@pytest.mark.parametrize("texts", [["hi", "ok", "no", "h", "hi!", "what", "who?", "hello", "🦊", "🐻"]])
def test_short_prompts_are_near_only_to_themselves(texts):
    found = signatures(texts)
    for place in range(len(texts)):
        expected = [other == place for other in range(len(texts))]
        assert near_matches(found, found[place : place + 1]).tolist() == expected


def test_empty_prompts_match_nothing():
    found = signatures(["", " \n ", PROMPT])
    assert (found[:2] == EMPTY).all()
    assert near_matches(found, found).tolist() == [False, False, True]
    assert near_matches(found, found[:2]).tolist() == [False] * 3
    assert near_matches(found, found[:0]).tolist() == [False] * 3
    assert near_matches(found[:0], found).shape == (0,)
    assert signatures([]).shape == (0, HASHES)


def test_the_same_signatures_in_another_process():
    code = (
        "from aplot_lightning.data.contamination import signatures; import hashlib; "
        f"print(hashlib.sha256(signatures([{PROMPT!r}, 'hi', '']).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # the cache keeps signatures: another value here makes every cache on every machine wrong
    assert done.stdout.strip() == "276928590e4e13555fd76f0be9095543383fc24cd2871447693d1364b569e5d5"


@given(st.lists(st.text(max_size=30), max_size=6), st.lists(st.text(max_size=30), max_size=6), st.text(max_size=30))
def test_more_tested_prompts_never_match_less(texts, tested, another):
    mine, its = signatures(texts), signatures(tested)
    fewer = near_matches(mine, its)
    more = near_matches(mine, np.concatenate([its, signatures([another])]))
    assert (fewer <= more).all()
    exact = np.array([any(shingles(text) and shingles(text) == shingles(other) for other in tested) for text in texts])
    assert (exact.astype(bool) <= fewer).all()


def test_the_search_finds_what_comparing_all_finds(monkeypatch):
    """Many near pairs in few bands, chunks that end in mid-way: beside a plain loop over all pairs."""
    generator = np.random.default_rng(3)
    centres = generator.integers(0, 1 << 16, (5, HASHES), dtype=np.uint16)
    rows = centres[generator.integers(0, 5, 700)]
    tested = centres[generator.integers(0, 5, 90)]
    for table in (rows, tested):
        noise = generator.random(table.shape) < generator.uniform(0, 0.25, (len(table), 1))
        table[noise] = generator.integers(0, 1 << 16, noise.sum())
    expected = [(row == tested).mean(axis=1).max() >= 0.8 for row in rows]
    assert 0.2 < np.mean(expected) < 0.8
    monkeypatch.setattr(contamination, "CHUNK", 64)
    monkeypatch.setattr(contamination, "COMPARED", 50)
    found = near_matches(rows, tested)
    assert not (found & ~np.array(expected)).any()
    assert found.sum() >= 0.99 * np.sum(expected)


def test_thousands_of_prompts_from_one_template_take_few_comparisons(monkeypatch):
    """At a similarity of 0.7 to all of 3,000 tested prompts nothing is near; a band holds a few hundred of them."""
    generator = np.random.default_rng(4)
    template = generator.integers(0, 1 << 16, HASHES, dtype=np.uint16)
    tables = [np.tile(template, (count, 1)) for count in (300, 3000)]
    for table in tables:
        noise = generator.random(table.shape) < 0.16
        table[noise] = generator.integers(0, 1 << 16, noise.sum())
    compared, counted = contamination._agreeing, []
    monkeypatch.setattr(
        contamination, "_agreeing", lambda one, other: (counted.append(other[..., 0].size), compared(one, other))[1]
    )
    found = near_matches(*tables)
    assert sum(counted) <= 2 * 300 * contamination.BANDS * contamination.CANDIDATES
    exact = np.array([(row == tables[1]).mean(axis=1).max() >= 0.8 for row in tables[0]])
    assert not (found & ~exact).any()


def test_a_million_characters_take_little_memory():
    text = " ".join(WORDS) * 700
    assert len(text) > 1_000_000
    tracemalloc.start()
    signatures([text])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 40e6
