from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.data.batching import collate, pad_rows, rank_micro_batches
from aplot_lightning.data.encoded import EncodedComparisons


def encoded(lengths: list[int], counts: list[int]) -> EncodedComparisons:
    """Comparisons of `counts[i]` pairs (a chain of responses), each response a prefix and one token more."""
    segments = [
        part for length, count in zip(lengths, counts, strict=True) for part in [length - 1] + [1] * (count + 1)
    ]
    starts = np.concatenate([[0], np.cumsum(segments)])
    responses = np.asarray(counts) + 1
    return EncodedComparisons(
        tokens=np.arange(sum(segments), dtype=np.int32),
        segments=starts,
        first_segment=np.concatenate([[0], np.cumsum(responses + 1)]),
        winners=np.concatenate([np.arange(count) for count in counts]).astype(np.int32),
        losers=np.concatenate([np.arange(count) + 1 for count in counts]).astype(np.int32),
        first_pair=np.concatenate([[0], np.cumsum(counts)]),
        columns={"margin": np.arange(sum(counts), dtype=np.float32)},
        sources=["s"],
        starts=np.repeat(np.asarray(lengths, dtype=np.int32) - 1, responses),
        lengths=np.asarray(lengths, dtype=np.int32),
        kept=np.arange(len(lengths)),
    )


@given(
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=40),
    micro=st.integers(1, 9),
    world=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_ranks_share_a_batch_without_overlap_in_equally_many_micro_batches(
    counts: list[int], micro: int, world: int, seed: int
) -> None:
    lengths = np.random.default_rng(seed).integers(1, 50, len(counts))
    batch = np.arange(len(counts))
    cuts = [rank_micro_batches(batch, lengths, np.asarray(counts), micro, rank, world) for rank in range(world)]
    assert len({len(cut) for cut in cuts}) == 1
    assert sorted(c for cut in cuts for part in cut for c in part) == list(range(len(counts)))
    for cut in cuts:
        own = np.concatenate(cut)
        assert all(np.diff(lengths[own]) <= 0)
    if max(counts) == 1:
        assert max(len(part) for cut in cuts for part in cut) <= micro


def test_rows_are_padded_on_the_right_and_scored_at_their_last_token() -> None:
    ids, mask, end = pad_rows([np.array([5, 6, 7]), np.array([8])], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert end.tolist() == [2, 0]
    assert ids.dtype == mask.dtype == end.dtype == torch.int64


def test_a_batch_points_at_its_pairs() -> None:
    data = encoded(lengths=[4, 3, 5], counts=[1, 2, 1])
    batch = collate(data, np.array([2, 1]), pad_id=0)
    assert batch.responses == 5
    assert batch.pairs.chosen.tolist() == [0, 2, 3]
    assert batch.pairs.rejected.tolist() == [1, 3, 4]
    assert batch.pairs.columns["index"].tolist() == [3, 1, 2]
    assert batch.pairs.columns["margin"].tolist() == [3, 1, 2]
    assert batch.start is not None
    assert batch.start.tolist() == [4, 4, 2, 2, 2]
    assert batch.input_ids[0, : batch.end[0] + 1].tolist() == data.rows(2)[0].tolist()


@pytest.mark.parametrize("comparisons", [[], [0]])
def test_an_empty_batch_still_has_a_row(comparisons: list[int]) -> None:
    batch = collate(encoded(lengths=[4], counts=[1]), np.asarray(comparisons, dtype=np.int64), pad_id=0)
    assert batch.responses == 1 + len(comparisons)
    assert len(batch.pairs) == len(comparisons)
    assert batch.pairs.columns["margin"].shape == (len(comparisons),)
