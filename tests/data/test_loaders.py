"""Which items a loader gives: a pure function of the step, the rank and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.data.batching import Layout
from aplot_lightning.data.comparisons import parse_comparison
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.evaluation_set import EvaluationSet
from aplot_lightning.data.loaders import EvaluationBatches, OptimizerBatches, OwnBatches, StepSampler, loader
from aplot_lightning.data.plan import BatchPlan
from aplot_lightning.model.locate import ASSETS
from aplot_lightning.model.tokenizer import load_tokenizer
from aplot_lightning.types import Batch


@pytest.fixture(scope="module")
def evaluated() -> EvaluationSet:
    """23 comparisons of very different lengths; every fifth has three responses, so three pairs."""
    rows: list[dict[str, Any]] = []
    for number in range(23):
        words = " yes" * (1 + 7 * number % 11)
        if number % 5 == 4:
            rows.append({"prompt": f"{number}?", "responses": [f"a{words}", "b", "c"], "scores": [3, 2, 1]})
        else:
            rows.append({"prompt": f"{number}?", "chosen": f"a{words}", "rejected": "b"})
    comparisons = [parse_comparison(row, f"x.jsonl:{place}", "x") for place, row in enumerate(rows, 1)]
    tokenizer = load_tokenizer(str(ASSETS / "world-decoder"), "model", "world-decoder")
    return EvaluationSet("ood/x", comparisons, ConversationEncoder(tokenizer).encode(comparisons))


def trainer_at(step: int, limit: float = 1.0) -> Any:
    return SimpleNamespace(global_step=step, limit_train_batches=limit, global_rank=0, world_size=1)


def optimizer_batches(encoded: EncodedComparisons, rank: int = 0, world: int = 1) -> OptimizerBatches:
    plan = BatchPlan(np.diff(encoded.first_pair), batch_size=4, seed=3)
    return OptimizerBatches(encoded, plan, Layout(0, packed=True, size=3), rank, world)


def places(dataset: OptimizerBatches, step: int, limit: float) -> list[tuple[int, int]]:
    return list(StepSampler(dataset, trainer_at(step, limit)))


@pytest.mark.parametrize(("limit", "length"), [(1.0, 8), (0.5, 4), (0.3, 2), (3, 3), (1, 1), (1000, 8)])
def test_a_resumed_epoch_goes_on_at_the_place_of_its_step(evaluated: EvaluationSet, limit: float, length: int) -> None:
    dataset = optimizer_batches(evaluated.encoded)
    assert len(dataset) == 8  # 31 pairs in batches of 4
    undisturbed = [(epoch, offset) for epoch in range(4) for offset in range(length)]
    for step in range(3 * length):
        rest_of_epoch = length - step % length
        assert places(dataset, step, limit) == undisturbed[step : step + rest_of_epoch]


@given(step=st.integers(0, 100), limit=st.one_of(st.integers(1, 12), st.floats(0.125, 1.0)))
def test_places_depend_on_the_step_alone(evaluated: EvaluationSet, step: int, limit: float) -> None:
    dataset = optimizer_batches(evaluated.encoded)
    fresh = places(dataset, step, limit)
    trainer = trainer_at(0, limit)
    used = StepSampler(dataset, trainer)
    list(used)  # another epoch before it
    trainer.global_step = step
    assert list(used) == fresh
    assert len({epoch for epoch, _ in fresh}) == 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_train_on_every_pair_of_a_batch_once(evaluated: EvaluationSet, world: int) -> None:
    whole = optimizer_batches(evaluated.encoded)
    ranks = [optimizer_batches(evaluated.encoded, rank, world) for rank in range(world)]
    for offset in range(len(whole)):
        wanted = sorted(i for part in whole[0, offset] for i in part.pairs.columns["index"].tolist())
        parts = [dataset[0, offset] for dataset in ranks]
        assert len({len(part) for part in parts}) == 1
        assert sorted(i for part in parts for micro in part for i in micro.pairs.columns["index"].tolist()) == wanted


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    "layout",
    [Layout(0, size=1), Layout(0, size=4, packed=True), Layout(0, size=64), Layout(0, packed=True, tokens=50)],
    ids=str,
)
def test_ranks_evaluate_every_pair_once_in_equally_many_batches(
    evaluated: EvaluationSet, world: int, layout: Layout
) -> None:
    seen: list[int] = []
    lengths = set()
    for rank in range(world):
        dataset = EvaluationBatches(evaluated, layout, rank, world)
        sampler = OwnBatches(dataset, num_replicas=world, rank=rank, shuffle=False)
        batches = list(loader(dataset, sampler, workers=0, seed=0))
        assert len(batches) == len(dataset) == len(sampler)
        lengths.add(len(batches))
        seen += [i for batch in batches for i in batch.pairs.columns["index"].tolist()]
    assert len(lengths) == 1
    assert sorted(seen) == list(range(evaluated.encoded.pairs))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_give_the_same_batches_in_the_same_order(evaluated: EvaluationSet) -> None:
    dataset = optimizer_batches(evaluated.encoded)

    def load(workers: int) -> list[list[Batch]]:
        return list(loader(dataset, StepSampler(dataset, trainer_at(11)), workers, seed=0))

    alone, helped = load(0), load(2)
    assert len(alone) == len(helped) == 5
    for one, other in zip(alone, helped, strict=True):
        for part, same in zip(one, other, strict=True):
            assert torch.equal(part.input_ids, same.input_ids)
            assert part.tree == same.tree
            assert torch.equal(part.pairs.columns["index"], same.pairs.columns["index"])


def test_loading_leaves_the_global_random_stream_alone(evaluated: EvaluationSet) -> None:
    dataset = optimizer_batches(evaluated.encoded)
    before = torch.random.get_rng_state()
    list(loader(dataset, StepSampler(dataset, trainer_at(0)), 0, seed=0))
    assert torch.equal(torch.random.get_rng_state(), before)
