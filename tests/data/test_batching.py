from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.data.batching import Layout, collate, pack_row, pad_rows, positions, rank_micro_batches
from aplot_lightning.data.comparisons import Comparison
from aplot_lightning.data.encoded import Builder, EncodedComparisons
from aplot_lightning.types import Batch, Pairs, Tree


def encoded(lengths: list[int], counts: list[int]) -> EncodedComparisons:
    """Comparisons of `counts[i]` pairs (a chain of responses), each response a prefix and one token more."""
    builder, token = Builder(), 100
    for place, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        prefix = np.arange(token, token + length - 1, dtype=np.int32)
        rows = [np.append(prefix, np.int32(token + length + number)) for number in range(count + 1)]
        pairs = tuple((number, number + 1) for number in range(count))
        message = ({"role": "assistant", "content": "x"},)
        made: dict[str, Any] = dict.fromkeys(Comparison.__dataclass_fields__)
        made |= {"prompt": (), "responses": (message,) * (count + 1), "pairs": pairs, "source": "s"}
        builder.add(place, Comparison(**{**made, "margin": float(place)}), rows, [length - 1] * (count + 1))
        token += 1000
    return builder.build()


def conversations(batch: Batch) -> list[list[int]]:
    """The tokens of each response's conversation, read out of either layout."""
    if batch.attention_mask is not None:
        return [row[: end + 1].tolist() for row, end in zip(batch.input_ids, batch.end, strict=True)]
    assert batch.tree is not None
    row, place = batch.input_ids[0].tolist(), batch.tree.root
    read = []
    for prefix, suffixes in batch.tree.comparisons:
        shared = row[: batch.tree.root] + row[place : place + prefix]
        place += prefix
        own = {}
        for response in Tree.row_order(suffixes):
            own[response] = row[place : place + suffixes[response]]
            place += suffixes[response]
        read += [shared + own[response] for response in range(len(suffixes))]
    assert place == len(row)
    return read


@given(
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=40),
    size=st.none() | st.integers(1, 9),
    tokens=st.none() | st.integers(1, 300),
    packed=st.booleans(),
    world=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_ranks_share_a_batch_without_overlap_in_equally_many_micro_batches(
    counts: list[int], size: int | None, tokens: int | None, packed: bool, world: int, seed: int
) -> None:
    lengths = np.random.default_rng(seed).integers(1, 50, len(counts))
    data, layout = encoded(lengths.tolist(), counts), Layout(0, packed, size, tokens)
    cuts = [rank_micro_batches(data, np.arange(len(counts)), layout, rank, world) for rank in range(world)]
    assert len({len(cut) for cut in cuts}) == 1
    assert sorted(c for cut in cuts for part in cut for c in part) == list(range(len(counts)))
    for cut in cuts:
        own = np.concatenate(cut)
        assert all(np.diff(lengths[own]) <= 0)
        for part in cut:
            batch = collate(data, part, layout)
            assert len(part) <= 1 or tokens is None or batch.computed_tokens <= tokens
            if len(part) > 1 and size is not None and (max(counts) == 1 or tokens is not None):
                assert len(batch.pairs) <= size


@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=30), tokens=st.integers(1, 200), packed=st.booleans())
def test_a_budget_of_tokens_is_used(lengths: list[int], tokens: int, packed: bool) -> None:
    """No micro-batch could take the next comparison too."""
    data, layout = encoded(lengths, [1] * len(lengths)), Layout(0, packed, None, tokens)
    cut = rank_micro_batches(data, np.arange(len(lengths)), layout)
    for part, following in pairwise(cut):
        batch = collate(data, np.append(part, following[0]), layout)
        assert batch.input_ids.numel() > tokens


def test_rows_are_padded_on_the_right_and_scored_at_their_last_token() -> None:
    ids, mask, end = pad_rows([np.array([5, 6, 7]), np.array([8])], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert end.tolist() == [2, 0]
    assert ids.dtype == mask.dtype == end.dtype == torch.int64


def test_a_packed_row_shares_what_its_conversations_begin_with() -> None:
    first = [np.array([1, 2, 3, 4]), np.array([5]), np.array([6, 7])]
    second = [np.array([1, 2]), np.array([8]), np.array([9])]
    batch = pack_row([first, second], Pairs(torch.tensor([0, 2]), torch.tensor([1, 3])), least_root=2)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 6, 7, 5, 8, 9]]  # the longest suffix comes first
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 2, 2]]
    assert batch.end.tolist() == [6, 5, 7, 8]
    assert batch.tree == Tree(2, ((2, (1, 2)), (0, (1, 1))))
    assert batch.lengths == (5, 6, 3, 3)
    assert (batch.responses, batch.computed_tokens, batch.padding) == (4, 9, 0)
    assert batch.attention_mask is None


def test_too_short_a_root_is_not_shared() -> None:
    comparisons = [[np.arange(7), np.array([9])]] * 2
    nothing = Pairs(*[torch.zeros(0, dtype=torch.int64)] * 2)
    assert pack_row(comparisons, nothing).input_ids.shape[1] == 16
    assert pack_row(comparisons, nothing, least_root=7).input_ids.shape[1] == 9
    assert pack_row(comparisons[:1], nothing, least_root=1).tree == Tree(0, ((7, (1,)),))


SEGMENTS = st.lists(st.integers(0, 3), max_size=6).map(lambda tokens: np.asarray(tokens, dtype=np.int32))
SUFFIX = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(lambda tokens: np.asarray(tokens, dtype=np.int32))
COMPARISON = st.tuples(SEGMENTS, st.lists(SUFFIX, min_size=1, max_size=4)).map(lambda parts: [parts[0], *parts[1]])


@given(comparisons=st.lists(COMPARISON, min_size=1, max_size=5), least=st.integers(1, 4))
def test_a_packed_row_holds_every_conversation(comparisons: list[list[np.ndarray]], least: int) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = pack_row(comparisons, Pairs(nothing, nothing), least_root=least)
    expected = [np.concatenate([prefix, suffix]).tolist() for prefix, *suffixes in comparisons for suffix in suffixes]
    assert conversations(batch) == expected
    assert batch.lengths == tuple(map(len, expected))
    assert batch.tree is not None
    assert batch.position_ids is not None
    assert positions(batch.tree).tolist() == batch.position_ids[0].tolist()
    for end, tokens in zip(batch.end.tolist(), expected, strict=True):
        assert batch.input_ids[0, end] == tokens[-1]
        assert batch.position_ids[0, end] == len(tokens) - 1


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_points_at_its_pairs(packed: bool) -> None:
    data = encoded(lengths=[4, 3, 5], counts=[1, 2, 1])
    batch = collate(data, np.array([2, 1]), Layout(0, packed))
    assert batch.responses == 5
    assert batch.pairs.chosen.tolist() == [0, 2, 3]
    assert batch.pairs.rejected.tolist() == [1, 3, 4]
    assert batch.pairs.columns["index"].tolist() == [3, 1, 2]
    assert batch.pairs.columns["margin"].tolist() == [2, 1, 1]
    assert conversations(batch) == [row.tolist() for comparison in (2, 1) for row in data.rows(comparison)]
    assert sum(batch.lengths) == 19
    if packed:
        assert (batch.start, batch.padding, batch.computed_tokens) == (None, 0, 6 + 5)
    else:
        assert batch.start is not None
        assert batch.start.tolist() == [4, 4, 2, 2, 2]
        assert (batch.padding, batch.computed_tokens) == (6, 25)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("comparisons", [[], [0]])
def test_an_empty_batch_still_has_a_token(comparisons: list[int], packed: bool) -> None:
    batch = collate(encoded([4], [1]), np.asarray(comparisons, dtype=np.int64), Layout(0, packed))
    assert batch.responses == 1 + len(comparisons)
    assert len(batch.pairs) == len(comparisons)
    assert batch.pairs.columns["margin"].shape == (len(comparisons),)
    if not comparisons:
        assert (batch.computed_tokens, batch.end.tolist()) == (1, [0])


@pytest.mark.parametrize("packed", [False, True])
def test_a_mapped_batch_keeps_what_is_no_tensor(packed: bool) -> None:
    batch = collate(encoded([4, 6], [1, 1]), np.arange(2), Layout(0, packed))
    moved = batch.map(lambda tensor: tensor + 0).to("cpu")
    assert (moved.tree, moved.lengths) == (batch.tree, batch.lengths)
    assert conversations(moved) == conversations(batch)
    assert torch.equal(moved.pairs.chosen, batch.pairs.chosen)
