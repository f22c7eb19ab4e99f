from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.data.plan import BatchPlan


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=60), size=st.integers(1, 16), seed=st.integers(0, 99))
def test_an_epoch_holds_every_comparison_once_in_batches_of_the_asked_size(
    counts: list[int], size: int, seed: int
) -> None:
    plan = BatchPlan(np.asarray(counts), size, seed)
    for epoch in (0, 3):
        batches = [plan.batch(epoch, offset) for offset in range(plan.batches_per_epoch)]
        assert sorted(np.concatenate(batches)) == list(range(len(counts)))
        pairs = [sum(counts[c] for c in batch) for batch in batches]
        assert all(abs(number - size) <= 2 * max(counts) for number in pairs[:-1])
        if max(counts) == 1:
            assert all(number == size for number in pairs[:-1])


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), batch=st.integers(2, 12), seed=st.integers(0, 99))
def test_every_source_is_in_every_batch_if_asked(sizes: list[int], batch: int, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.ones(len(groups), dtype=np.int64)
    batches = -(-len(groups) // batch)
    if min(sizes) < batches:
        with pytest.raises(ValueError, match="has fewer comparisons than there are optimizer batches"):
            BatchPlan(counts, batch, seed, groups)
        return
    plan = BatchPlan(counts, batch, seed, groups)
    drawn = [plan.batch(1, offset) for offset in range(plan.batches_per_epoch)]
    assert sorted(np.concatenate(drawn)) == list(range(len(groups)))
    assert all(set(groups[part]) == set(range(len(sizes))) for part in drawn)
    assert all(abs(len(part) - len(groups) / batches) <= len(sizes) for part in drawn)


def test_the_plan_is_a_pure_function_of_seed_and_place() -> None:
    counts = np.ones(100, dtype=np.int64)
    forward = BatchPlan(counts, 8, seed=5)
    wanted = [forward.batch(epoch, offset).tolist() for epoch in range(3) for offset in range(13)]
    backward = BatchPlan(counts, 8, seed=5)
    got = [backward.batch(epoch, offset).tolist() for epoch in (2, 1, 0) for offset in range(12, -1, -1)]
    assert got == wanted[::-1]
    assert BatchPlan(counts, 8, seed=6).batch(0, 0).tolist() != wanted[0]
    assert forward.batch(1, 0).tolist() != wanted[0]
