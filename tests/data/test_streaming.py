from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import aplot_lightning.model as model_room
from aplot_lightning.data.batching import Layout
from aplot_lightning.data.comparisons import Comparison, first_user_turn, parse_comparison, prompt_key
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.sources import Source, open_source
from aplot_lightning.data.streaming import Head, StreamedBatches
from aplot_lightning.errors import UserError
from aplot_lightning.types import Batch


def row(number: int) -> dict[str, Any]:
    return {"prompt": f"question {number}", "chosen": f"good {number}", "rejected": f"bad {number}"}


class Rows(Source):
    """`count` rows, every tenth of them unusable."""

    def __init__(self, count: int) -> None:
        self.name = "rows"
        self.count = count

    def rows(self) -> Iterator[tuple[str, Any]]:
        for number in range(self.count):
            yield f"rows:{number + 1}", {} if number % 10 == 9 else row(number)


@pytest.fixture(scope="module")
def encoder() -> ConversationEncoder:
    folder = Path(model_room.__file__).parent / "assets" / "world-decoder"
    return ConversationEncoder(AutoTokenizer.from_pretrained(folder), 64)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aplot_lightning.data.streaming.BLOCK", 20)


def held_out(comparison: Comparison) -> bool:
    return first_user_turn(comparison) == "question 3"


def batches(encoder: ConversationEncoder, source: Source, step: int = 0, **options: Any) -> StreamedBatches:
    defaults = {"batch_size": 4, "seed": 5, "held_out": held_out, "leaks": frozenset(), "step": lambda: step}
    return StreamedBatches(
        source, encoder, SourceLedger(source.name), Layout(0, packed=False, size=2), **{**defaults, **options}
    )


def texts(encoder: ConversationEncoder, item: list[Batch]) -> list[str]:
    """The chosen conversations of an optimizer batch."""
    return [
        encoder.tokenizer.decode(batch.input_ids[place][batch.attention_mask[place].bool()])
        for batch in item
        for place in batch.pairs.chosen.tolist()
    ]


def test_a_pass_holds_every_usable_row_once_and_the_next_one_in_another_order(encoder: ConversationEncoder) -> None:
    stream = batches(encoder, Rows(50))
    # 50 rows: 45 usable, one of them held out; blocks of 20, 20 and 10 rows with 17, 18 and 9 usable ones
    items = list(islice(iter(stream), 20))
    first, second = items[:10], items[10:]
    sizes = [sum(len(batch.pairs) for batch in item) for item in first]
    assert sum(sizes) == 44
    assert min(sizes) >= 4
    assert max(len(batch.pairs) for item in first for batch in item) <= 2
    orders = [[text for item in items for text in texts(encoder, item)] for items in (first, second)]
    expected = {f"good {number}" for number in range(50) if number % 10 != 9 and number != 3}
    for order in orders:
        assert len(order) == 44
        assert {next(each for each in expected if each + "<" in text) for text in order} == expected
    assert orders[0] != orders[1]
    assert stream.ledger.read == 50
    assert stream.ledger.refused["missing_field"] == 5


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 9, 10, 13])
def test_a_stopped_stream_goes_on_to_the_bit(encoder: ConversationEncoder, stop: int) -> None:
    undisturbed = [texts(encoder, item) for item in islice(iter(batches(encoder, Rows(50))), 16)]
    stopped = batches(encoder, Rows(50))
    running = iter(stopped)
    for _ in range(stop + 1):  # one is fetched ahead, as Lightning does
        next(running)
    state = json.loads(json.dumps(stopped.state_dict(stop)))  # primitives
    again = batches(encoder, Rows(50), step=0)  # Lightning asks once before it knows the step
    again.load_state_dict(state)
    next(iter(again))
    again.step = lambda: stop
    assert [texts(encoder, item) for item in islice(iter(again), 16 - stop)] == undisturbed[stop:]
    assert again.ledger.read == 50 or stop < 8


def test_ranks_share_every_batch(encoder: ConversationEncoder) -> None:
    whole = [sorted(texts(encoder, item)) for item in islice(iter(batches(encoder, Rows(50))), 10)]
    ranks = [islice(iter(batches(encoder, Rows(50), rank=rank, world=2)), 10) for rank in range(2)]
    for expected, one, other in zip(whole, *ranks, strict=True):
        assert len(one) == len(other)
        assert sorted(texts(encoder, one) + texts(encoder, other)) == expected


def test_leaks_are_refused_and_bad_rows_stop_where_asked(encoder: ConversationEncoder) -> None:
    leak = prompt_key(parse_comparison(row(7), "x:1", "x"))
    stream = batches(encoder, Rows(20), leaks={leak})
    next(iter(stream))
    assert stream.ledger.refused["leak"] == 1
    with pytest.raises(UserError, match=r"data.train: rows:10: .*missing_field.*mend or remove"):
        next(iter(batches(encoder, Rows(20), on_bad_row="error")))


def test_a_stream_without_a_usable_row_ends_in_a_mistake(encoder: ConversationEncoder) -> None:
    class Bad(Rows):
        def rows(self) -> Iterator[tuple[str, Any]]:
            return iter([("rows:1", {}), ("rows:2", {"chosen": "x"})])

    with pytest.raises(UserError, match="no row of rows can be used: 2 missing_field"):
        next(iter(batches(encoder, Bad(2))))


def test_the_head_is_the_first_block() -> None:
    head = Head(Rows(50))
    assert [where for where, _ in head.rows()] == [f"rows:{number}" for number in range(1, 21)]
    assert head.fingerprint() == Head(Rows(60)).fingerprint()
    assert head.fingerprint() != Head(Rows(19)).fingerprint()


@pytest.mark.parametrize("columns", [{}, {"prompt": "q"}])
def test_a_hub_stream_goes_to_its_place_at_once(tmp_path: Path, columns: dict[str, str]) -> None:
    """A folder that `datasets` reads stands in for the hub, of three shards."""
    theirs = columns.get("prompt", "prompt")
    for shard in range(3):
        rows = [row(100 * shard + number) for number in range(70)]
        lines = [json.dumps({theirs if name == "prompt" else name: each[name] for name in each}) for each in rows]
        (tmp_path / f"part-{shard}.jsonl").write_text("\n".join(lines) + "\n")
    options = {"name": str(tmp_path), "streaming": True, **({"columns": columns} if columns else {})}
    source = open_source(options, "data.train")
    assert source.streaming
    whole = source.stream().take(1000)
    assert len(whole) == 210
    assert whole[75][1] == row(105)
    stream = source.stream()
    taken = stream.take(99)
    place = json.loads(json.dumps(stream.place()))
    assert place["inner"] is not None
    assert taken + source.stream(place).take(1000) == whole


def test_the_order_does_not_touch_the_global_random_state(encoder: ConversationEncoder) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    next(iter(batches(encoder, Rows(50))))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
