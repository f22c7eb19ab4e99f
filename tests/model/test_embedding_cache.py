"""Embeddings on disk: the same as the backbone's own, computed once, keyed by all that decides them."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aplot_lightning.data.batching import Layout, collate
from aplot_lightning.data.comparisons import Comparison, parse_comparison
from aplot_lightning.data.encoded import Builder, EncodedComparisons, Part, TokenRows, pair_arrays
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.preparation import Cache
from aplot_lightning.errors import UserError
from aplot_lightning.model import RewardModel, embedding_cache
from aplot_lightning.model.embedding_cache import EmbeddingCache, StoredEmbeddings, backbone_digest
from tests.model.conftest import WORDS

PADDED, PACKED = Layout(0, packed=False, size=3), Layout(0, packed=True, size=3)


def comparisons(seed: int, count: int = 17) -> list[Comparison]:
    """Pairs, and every fourth three responses, of very different lengths."""
    random = np.random.default_rng(seed)

    def words(most: int) -> str:
        return " ".join(random.choice(WORDS, random.integers(1, most)))

    rows: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"{words(9)} {number} ?"
        answers = [f"{words(12)} {letter}" for letter in ("yes", "no", "cat")]
        if number % 4 == 3:
            rows.append({"prompt": prompt, "responses": answers, "scores": [3, 2, 1]})
        else:
            rows.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    return [parse_comparison(row, f"x.jsonl:{place}", "x") for place, row in enumerate(rows, 1)]


def encode(model: RewardModel, seed: int = 1, count: int = 17) -> EncodedComparisons:
    return ConversationEncoder(model.tokenizer, 64).encode(comparisons(seed, count))


class Bench:
    """An EmbeddingCache and what it computed."""

    def __init__(self, model: RewardModel, folder: Path, dtype: Any = "float32", **options: Any) -> None:
        self.computed: list[int] = []
        self.cache = EmbeddingCache(
            model,
            Cache(folder),
            **{"dtype": dtype, "precision": "32-true", "context": nullcontext, "progress": self._progress, **options},
        )

    @contextmanager
    def _progress(self, conversations: int) -> Iterator[Any]:
        self.promised = conversations
        yield self.computed.append

    def __call__(self, encoded: EncodedComparisons, layout: Layout = PADDED) -> np.ndarray:
        rows = np.arange(int(encoded.first_response[-1]))
        return self.cache.embed(encoded, layout)[rows]


def separate(model: RewardModel, encoded: EncodedComparisons) -> np.ndarray:
    """Every conversation alone and unpadded through the plain Transformers model."""
    rows = [row for place in range(len(encoded)) for row in encoded.rows(place)]
    made = []
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row.astype(np.int64))[None]
            output = model.backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids))
            if model.pooling == "classification":
                made.append(output.logits[0])
            else:
                states = output.last_hidden_state[0]
                made.append(states.mean(0) if model.pooling == "mean" else states[-1])
    return torch.stack(made).numpy()


@pytest.fixture
def model(saved) -> RewardModel:
    return RewardModel.from_backbone(str(saved("llama")), dropout=0.3)


@pytest.mark.parametrize(
    ("family", "pooling", "layout"),
    [
        ("llama", "auto", PACKED),
        ("llama", "auto", PADDED),
        ("qwen3", "auto", PACKED),
        ("gpt2", "mean", PADDED),
        ("bert", "auto", PADDED),
        ("roberta", "mean", PADDED),
    ],
)
def test_embeddings_are_those_of_plain_transformers(saved, tmp_path, monkeypatch, family, pooling, layout) -> None:
    model = RewardModel.from_backbone(str(saved(family)), pooling=pooling, dropout=0.3)
    assert layout is not PACKED or model.packs
    encoded = encode(model)
    monkeypatch.setattr(embedding_cache, "CONVERSATIONS", 7)
    bench = Bench(model, tmp_path)
    found = bench(encoded, layout)
    assert bench.promised == sum(bench.computed) == len(found) == 2 * 17 + 4
    assert model.training  # as it was
    np.testing.assert_allclose(found, separate(model.eval(), encoded), rtol=0, atol=1e-5)
    with torch.no_grad():  # and a head alone gives the whole model's rewards, pair for pair
        for part in (np.asarray([3, 16, 0]), np.asarray([], dtype=np.int64)):
            encoded.embeddings = None
            whole = model(batch := collate(encoded, part, PADDED))
            encoded.embeddings = bench.cache.embed(encoded, layout)
            alone = model(cached := collate(encoded, part, PADDED))
            assert cached.computed_tokens == cached.padding == 0
            torch.testing.assert_close(cached.pairs.columns, batch.pairs.columns, rtol=0, atol=0, equal_nan=True)
            for side, expected in zip(alone.pairs(cached.pairs), whole.pairs(batch.pairs), strict=True):
                torch.testing.assert_close(side.rewards, expected.rewards, rtol=0, atol=1e-5)


def test_a_second_time_nothing_is_computed(model, tmp_path) -> None:
    first = Bench(model, tmp_path)(encode(model))
    model.backbone.register_forward_pre_hook(lambda *_: pytest.fail("the backbone ran"))
    bench = Bench(RewardModel.from_backbone(model.name), tmp_path)  # without dropout
    assert np.array_equal(bench(encode(model)), first)
    assert not bench.computed


def test_float16_takes_half_and_rounds(model, tmp_path) -> None:
    exact, rounded = (
        Bench(model, tmp_path / "32")(encode(model)),
        Bench(model, tmp_path / "16", "float16")(encode(model)),
    )
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, rtol=2**-11, atol=2**-24)
    sizes = [path.stat().st_size for each in ("32", "16") for path in (tmp_path / each).rglob("embeddings.bin")]
    assert sizes == [4 * exact.size, 2 * exact.size]


def test_what_float16_cannot_hold_is_refused(model, tmp_path) -> None:
    with torch.no_grad():
        model.backbone.model.norm.weight.mul_(1e6)
    with pytest.raises(UserError, match=r"^model\.cache_dtype: float16 cannot hold an embedding of \d.*float32$"):
        Bench(model, tmp_path, "float16")(encode(model))
    assert np.abs(Bench(model, tmp_path)(encode(model))).max() > 65504


# Keys


def test_a_digest_knows_weights_pooling_and_precision(saved) -> None:
    def digest(precision: str = "32-true", **options: Any) -> str:
        model = RewardModel.from_backbone(str(saved("llama")), **options)
        if options.get("head_seed") == 1:
            with torch.no_grad():
                model.backbone.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
        return backbone_digest(model, precision)

    own = digest()
    assert digest(dropout=0.5, head_seed=2) == own  # neither of them is in the embeddings
    others = [digest("bf16-mixed"), digest(pooling="mean"), digest(dtype="bfloat16"), digest(head_seed=1)]
    assert len({own, *others}) == 5


def test_a_digest_of_tokens_knows_every_token_and_where_conversations_end(model) -> None:
    rows = [np.arange(4, 4 + n, dtype=np.int32) for n in (5, 7, 6, 9)]
    pair, triple = comparisons(1)[0], comparisons(1)[3]

    def digest(*parts: tuple[Comparison, list[np.ndarray]]) -> str:
        builder = Builder()
        for place, (comparison, own) in enumerate(parts):
            builder.add(place, comparison, own, [1] * len(own))
        encoded = builder.build()
        return encoded.token_digest(0, len(encoded))

    changed = rows[1].copy()
    changed[-1] += 1
    digests = [
        digest((pair, rows[:2])),
        digest((pair, [rows[0], changed])),
        digest((pair, [rows[1], rows[0]])),
        digest((pair, [rows[0], rows[1][:6]])),
        digest((pair, rows[:2]), (pair, rows[2:])),
        digest((triple, rows[:3])),
    ]
    assert len(set(digests)) == len(digests)
    assert digest((pair, rows[:2])) == digests[0]


def test_tokens_of_two_sources_are_read_where_they_lie(model, tmp_path) -> None:
    """A view of comparisons here and there in two files has the digests and embeddings of the same ones in memory."""
    drawn = [comparisons(1, 9), comparisons(2, 11)]
    encoder = ConversationEncoder(model.tokenizer, 64)
    parts = []
    for each in drawn:
        rows = TokenRows()
        for comparison, encoding in zip(each, encoder.encode_chunk(each), strict=True):
            rows.add(comparison, encoding.rows, encoding.starts)
        arrays = {**rows.arrays(), **pair_arrays(each), "source": np.zeros(len(each), dtype=np.int32)}
        parts.append(Part(arrays.pop("tokens"), arrays, ["x"]))
    places = [np.asarray([0, 1, 2, 5, 8]), np.asarray([1, 2, 7])]
    view = EncodedComparisons.of(parts, places)
    memory = encoder.encode([each[place] for each, own in zip(drawn, places, strict=True) for place in own])
    for start, stop in [(0, 8), (2, 6), (4, 5)]:
        assert view.token_digest(start, stop) == memory.token_digest(start, stop)
    bench = Bench(model, tmp_path)
    assert np.array_equal(bench(view), bench(memory))
    np.testing.assert_allclose(bench(view), separate(model.eval(), memory), rtol=0, atol=1e-5)


# Entries


def test_a_damaged_entry_is_computed_again_and_the_others_are_not(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedding_cache, "CONVERSATIONS", 10)
    first = Bench(model, tmp_path)(encode(model))
    path = min(tmp_path.rglob("embeddings.bin"))
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    bench = Bench(model, tmp_path)
    with pytest.warns(UserWarning, match="damaged and is made again"):
        assert np.array_equal(bench(encode(model)), first)
    assert sum(bench.computed) == len(data) / 4 / model.hidden_size < len(first)


def test_an_interrupted_run_keeps_what_it_finished(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedding_cache, "CONVERSATIONS", 8)
    calls = []

    def interrupt(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt

    hook = model.backbone.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Bench(model, tmp_path)(encode(model))
    hook.remove()
    assert model.training
    finished = sum(path.stat().st_size for path in tmp_path.rglob("embeddings.bin")) // 4 // model.hidden_size
    bench = Bench(model, tmp_path)
    found = bench(encode(model))
    assert sum(bench.computed) == len(found) - finished
    assert finished > 0
    assert not list(tmp_path.rglob("*.partial"))
    assert np.array_equal(found, Bench(model, tmp_path / "undisturbed")(encode(model)))


def test_a_full_disk_is_one_line_that_says_the_need(model, tmp_path, monkeypatch) -> None:
    def fill(self: Any, arrays: Any) -> None:
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    monkeypatch.setattr(embedding_cache.ArrayWriter, "append", fill)
    message = (
        rf"no space is left at {re.escape(str(tmp_path))}: .*take 4.86e-06 GB; model.cache_dtype float16 takes half$"
    )
    with pytest.raises(UserError, match=message) as caught:
        Bench(model, tmp_path)(encode(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_begins_with_its_share(model, tmp_path, monkeypatch, rank) -> None:
    monkeypatch.setattr(embedding_cache, "CONVERSATIONS", 8)
    whole = Bench(model, tmp_path / "one")(encode(model))
    made: list[int] = []
    folder = tmp_path / "three"
    original = EmbeddingCache._compute

    def watch(self: Any, encoded: Any, stretch: range, *rest: Any) -> np.ndarray:
        made.append(stretch.start)
        return original(self, encoded, stretch, *rest)

    monkeypatch.setattr(EmbeddingCache, "_compute", watch)
    assert np.array_equal(Bench(model, folder, rank=rank, world=3)(encode(model)), whole)
    order = sorted(made)
    assert made == [*order[rank::3], *order[(rank + 1) % 3 :: 3], *order[(rank + 2) % 3 :: 3]]


def test_ranks_that_run_together_compute_what_any_of_them_lacks(model, tmp_path) -> None:
    found = Bench(model, tmp_path)(encode(model))
    asked: list[bool] = []

    def agree(missing: bool) -> bool:
        asked.append(missing)
        return True  # another rank lacks it

    bench = Bench(model, tmp_path, rank=1, world=2, agree=agree)
    assert np.array_equal(bench(encode(model)), found)
    assert asked == [False]
    assert sum(bench.computed) == len(found)


def test_stored_embeddings_may_be_pickled_and_read_in_any_order(tmp_path) -> None:
    values = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    first = np.asarray([0, 4, 5, 20])
    paths = [tmp_path / str(place) for place in range(3)]
    for path, start, stop in zip(paths, first[:-1], first[1:], strict=True):
        path.write_bytes(values[start:stop].tobytes())
    stored = StoredEmbeddings(paths, first, 3, np.dtype("float32"))
    rows = np.asarray([19, 4, 4, 0, 5, 3])
    assert np.array_equal(stored[rows], values[rows])
    copy = pickle.loads(pickle.dumps(stored))
    assert len(pickle.dumps(stored)) < 5000  # paths, not numbers
    assert np.array_equal(copy[rows], values[rows])
    if (child := os.fork()) == 0:
        os._exit(0 if np.array_equal(stored[rows], values[rows]) else 1)
    assert os.waitpid(child, 0)[1] == 0
