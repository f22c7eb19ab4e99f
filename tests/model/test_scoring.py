from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aplot_lightning.data.encoded import shared_beginning
from aplot_lightning.model.scoring import (
    alike,
    cut_by_size,
    evaluating,
    packed_batches,
    padded_batches,
    unpaired_batch,
)
from aplot_lightning.types import Batch, Tree


@given(
    lengths=st.lists(st.integers(1, 50), max_size=30).map(lambda values: sorted(values, reverse=True)),
    batch_size=st.integers(1, 9),
    batch_tokens=st.none() | st.integers(1, 120),
)
def test_every_row_once_and_no_batch_too_large(lengths, batch_size, batch_tokens):
    batches = [list(places) for places in cut_by_size(lengths, batch_size, batch_tokens)]
    assert [place for places in batches for place in places] == list(range(len(lengths)))
    for places in batches:
        if batch_tokens is None:
            assert 1 <= len(places) <= batch_size
        else:
            assert len(places) == 1 or len(places) * lengths[places[0]] <= batch_tokens


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(1, 2), min_size=1, max_size=9)).map(
        lambda row: np.asarray([7] * 9 * row[0] + row[1], dtype=np.int32)
    ),
    min_size=1,
    max_size=25,
)


def conversations(batch: Batch) -> list[list[int]]:
    """What each scored token sees before it, read out of a packed row."""
    assert batch.tree is not None
    row, place, read = batch.input_ids[0].tolist(), batch.tree.root, []
    for prefix, suffixes in batch.tree.comparisons:
        shared, place = row[: batch.tree.root] + row[place : place + prefix], place + prefix
        own = {}
        for response in Tree.row_order(suffixes):
            own[response], place = row[place : place + suffixes[response]], place + suffixes[response]
        read += [shared + own[response] for response in range(len(suffixes))]
    return read


@given(rows=ROWS, batch_size=st.integers(1, 9), batch_tokens=st.none() | st.integers(1, 120))
def test_packed_and_padded_batches_hold_every_row_once(rows, batch_size, batch_tokens):
    packed = list(packed_batches(rows, batch_size, batch_tokens))
    padded = list(padded_batches(rows, batch_size, batch_tokens, 0))
    for batches in (packed, padded):
        assert sorted(place for places, _ in batches for place in places) == list(range(len(rows)))
        for places, batch in batches:
            fits = len(places) <= batch_size if batch_tokens is None else batch.computed_tokens <= batch_tokens
            assert len(places) == 1 or fits
            assert batch.lengths == tuple(len(rows[place]) for place in places)
    for places, batch in packed:
        assert conversations(batch) == [rows[place].tolist() for place in places]


def test_rows_that_begin_alike_share_their_beginning():
    generator = np.random.default_rng(0)
    system, *prompts = (generator.integers(10, 99, size) for size in (12, 40, 50, 60))
    rows = [np.concatenate([system, prompt, generator.integers(10, 99, 5)]) for prompt in prompts for _ in range(4)]
    rows = [rows[place] for place in generator.permutation(len(rows))]
    groups = alike(rows)
    assert sorted(map(len, groups)) == [4, 4, 4]
    for group in groups:
        assert shared_beginning([rows[place] for place in group]) >= 52
    ((places, batch),) = packed_batches(rows, 100, None)
    assert batch.computed_tokens == 12 + 40 + 50 + 60 + 12 * 5
    assert len(places) == 12


def test_an_unpaired_batch_holds_rows_and_no_pairs():
    batch = unpaired_batch([np.asarray([4, 5, 6]), np.asarray([7])], pad_id=9)
    assert batch.input_ids.tolist() == [[4, 5, 6], [7, 9, 9]]
    assert batch.end.tolist() == [2, 0]
    assert len(batch.pairs) == 0


def test_every_module_goes_back_to_its_own_mode():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[0].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [model.training, model[0].training, model[1].training] == [True, False, True]
