from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aplot_lightning.model.scoring import cut_by_size, evaluating, unpaired_batch


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
