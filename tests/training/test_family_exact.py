"""Every objective of conf/objective/ trains to the same weights for any cut of the optimizer batch.

Oracle: one autograd graph over the whole batch. Real pieces: the shipped YAML, the embedded world's pairs, the
quickstart's decoder, the loaders' own cut, two gloo processes. Five AdamW steps with clipping; in float64, where
what is not exact cannot hide behind rounding that AdamW enlarges (test_exact_batch.py has float32).
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from aplot_lightning import RewardModel
from aplot_lightning.data.batching import Layout, collate, rank_micro_batches
from aplot_lightning.data.comparisons import parse_comparison
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.plan import BatchPlan
from aplot_lightning.data.world import PreferenceWorld
from aplot_lightning.objectives import Objective
from aplot_lightning.training.gradient_cache import whole_batch_step
from aplot_lightning.types import Batch, Pairs, Scores
from tests.shipped import CONF, NAMES, shipped

STEPS, PAIRS = 5, 32
TOLERANCE = {"rtol": 1e-6, "atol": 1e-8}


def build(name: str, dropout: float = 0.0) -> tuple[RewardModel, Objective]:
    """The model and objective that a file of conf/objective/ asks for, with weights from a fixed seed."""
    made = shipped("--config", str(CONF / f"{name}.yaml"))
    torch.manual_seed(5)
    model = RewardModel.from_backbone("world-decoder", head=made.head, keep_lm_head=made.keep_lm_head, dropout=dropout)
    # the bottleneck samples while it trains, and another cut draws other samples: its mean is what can be compared
    model = (model.eval() if name == "inform" and not dropout else model).double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(norm, module)
    return model, made.objective


def norm(module: LlamaRMSNorm, states: Tensor) -> Tensor:
    """Without Transformers' rounding to float32, which AdamW enlarges where another layout differs by 1e-16."""
    return module.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + module.variance_epsilon)


def pairs_of_the_world() -> EncodedComparisons:
    rows = PreferenceWorld(pairs=STEPS * PAIRS, seed=3).rows()
    comparisons = [parse_comparison(row, where, "world") for where, row in rows]
    model = RewardModel.from_backbone("world-decoder")
    return ConversationEncoder(model.tokenizer, 64).encode(comparisons)


def cut(encoded: EncodedComparisons, step: int, layout: Layout, rank: int = 0, world: int = 1) -> list[Batch]:
    comparisons = BatchPlan(np.diff(encoded.first_pair), PAIRS, seed=1).batch(0, step)
    parts = rank_micro_batches(encoded, comparisons, layout, rank, world)
    return [collate(encoded, part, layout) for part in parts]


def one_graph(model: RewardModel, objective: Objective, parts: list[Batch]) -> Tensor:
    scores = [model(part) for part in parts]
    pairs = Pairs.concatenate([part.pairs for part in parts], [len(score) for score in scores])
    order = pairs.columns["index"].argsort()
    return objective(Scores.concatenate(scores), pairs.select(order)).loss


def train(
    name: str,
    encoded: EncodedComparisons,
    size: int,
    oracle: bool = False,
    dropout: float = 0.0,
    rank: int = 0,
    world: int = 1,
    packed: bool = False,
) -> Any:
    """Five steps; `packed` asks for packed rows where the model takes them."""
    model, objective = build(name, dropout)
    layout = Layout(0, packed and model.packs, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        parts = cut(encoded, step, layout, rank, world)
        model.zero_grad()
        loss = one_graph(model, objective, parts) if oracle else whole_batch_step(model, objective, parts).loss
        loss.backward()
        for parameter in model.parameters():
            if world > 1 and parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= world
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    state = {
        name: tensor.detach().clone() for name, tensor in chain(model.named_parameters(), objective.named_buffers())
    }
    return state | {"losses": torch.stack(losses)}


@pytest.fixture(scope="module")
def encoded() -> EncodedComparisons:
    return pairs_of_the_world()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_same_for_every_cut(name: str, encoded: EncodedComparisons) -> None:
    expected = train(name, encoded, PAIRS, oracle=True)
    torch.testing.assert_close(train(name, encoded, 8), expected, **TOLERANCE)
    torch.testing.assert_close(train(name, encoded, PAIRS), expected, **TOLERANCE)
    torch.testing.assert_close(train(name, encoded, 8, packed=True), expected, **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_in_the_first_pass_is_drawn_again_in_the_second(name: str, encoded: EncodedComparisons) -> None:
    """Dropout, and the bottleneck's samples, in packed rows: the same cut in one graph draws the same."""
    expected = train(name, encoded, 8, oracle=True, dropout=0.1, packed=True)
    torch.testing.assert_close(train(name, encoded, 8, dropout=0.1, packed=True), expected, **TOLERANCE)
    assert (expected["losses"] - train(name, encoded, PAIRS)["losses"]).abs().max() > 1e-6


def test_two_ranks_train_to_the_same_weights_and_each_objective_to_its_own(
    encoded: EncodedComparisons, tmp_path: Path
) -> None:
    """All objectives in two real gloo processes, 2 x 8 pairs each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    key, bt = "backbone.model.embed_tokens.weight", train("bt", encoded, PAIRS)
    for name in NAMES:
        on_two_ranks = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        expected = train(name, encoded, PAIRS)
        torch.testing.assert_close(on_two_ranks, expected, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
        if name != "bt":
            assert (expected[key] - bt[key]).abs().max() > 1e-5, name


def _rank(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    encoded = pairs_of_the_world()
    for name in NAMES:
        state = train(name, encoded, 8, rank=rank, world=2, packed=True)
        if rank == 0:
            torch.save(state, Path(folder) / f"{name}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # all is written; PyTorch's threads have been seen to abort the interpreter's own exit


if __name__ == "__main__":
    _rank(sys.argv[1], int(sys.argv[2]))
