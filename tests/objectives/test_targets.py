from __future__ import annotations

import numpy as np
import pytest
import torch

from aplot_lightning.objectives import ColumnTarget, HardTarget, LabelSmoothing

SOFT = [1.0, 0.7, 0.5, 0.2, 0.0]


def targets(part, make_batch, dtype=torch.float64, **columns):
    scores, pairs = make_batch(5, dtype=dtype, **columns)
    values = part(*scores.pairs(pairs), pairs.columns)
    assert values.shape == (5,)
    assert values.dtype == dtype
    return values


@pytest.mark.parametrize("part", [ColumnTarget(), HardTarget()])
def test_plain_pairs_have_target_one(part, make_batch):
    assert targets(part, make_batch).tolist() == [1.0] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_column_target_takes_the_data_as_it_is(make_batch, dtype):
    np.testing.assert_allclose(targets(ColumnTarget(), make_batch, dtype, target=SOFT), SOFT, rtol=1e-7)


def test_hard_target_keeps_only_the_preferred_side(make_batch):
    assert targets(HardTarget(), make_batch, target=SOFT).tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_label_smoothing(make_batch):
    np.testing.assert_allclose(targets(LabelSmoothing(), make_batch), 0.9)
    expected = [0.8 * target + 0.2 * (1 - target) for target in SOFT]
    np.testing.assert_allclose(targets(LabelSmoothing(0.2), make_batch, target=SOFT), expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 0.5, 1.0, float("nan")])
def test_label_smoothing_refuses(alpha):
    with pytest.raises(ValueError, match=r"^alpha must be at least 0 and below 0\.5"):
        LabelSmoothing(alpha)
