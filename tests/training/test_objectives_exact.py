"""Every objective of conf/objective/ has the same gradients for any split of the optimizer batch.

Oracle: one autograd graph over the whole batch. The YAML files, the world's pairs, the loader's own split and the two
gloo ranks are real; the decoder is tiny. Gradients are compared in float64, where a wrong term cannot hide behind
rounding. Objectives with state take two steps, since the second one reads what the first one left.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from aplot_lightning import RewardModel
from aplot_lightning.data.batching import Layout, collate, rank_micro_batches
from aplot_lightning.data.comparisons import parse_comparison
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.plan import BatchPlan
from aplot_lightning.data.world import PreferenceWorld, write_world_decoder
from aplot_lightning.objectives import Objective
from aplot_lightning.training.gradient_cache import whole_batch_step
from aplot_lightning.types import Batch, Pairs, Scores
from tests.ranks import on_two_ranks
from tests.shipped import CONF, NAMES, shipped

PAIRS = 12
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}
# separable, a plan over the batch, a moving average over steps, and a head with more than a reward
ON_RANKS = ["bt", "aplot", "normbt", "odin"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("backbone")
    write_world_decoder(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **SIZES, "num_key_value_heads": 2}))
    return str(folder)


@pytest.fixture(scope="module")
def encoded(backbone: str) -> EncodedComparisons:
    rows = PreferenceWorld(pairs=2 * PAIRS, seed=3).rows()
    comparisons = [parse_comparison(row, where, "world") for where, row in rows]
    return ConversationEncoder(RewardModel.from_backbone(backbone).tokenizer, 64).encode(comparisons)


def build(backbone: str, name: str, dropout: float) -> tuple[RewardModel, Objective]:
    """The model and objective of a file of conf/objective/, with weights from a fixed seed."""
    made = shipped("--config", str(CONF / f"{name}.yaml"))
    torch.manual_seed(5)
    model = RewardModel.from_backbone(backbone, head=made.head, keep_lm_head=made.keep_lm_head, dropout=dropout)
    # InfoRM's bottleneck samples in training, and another split draws other samples: compare its mean
    model = (model.eval() if name == "inform" and not dropout else model).double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(norm, module)
    return model, made.objective


def norm(module: LlamaRMSNorm, states: Tensor) -> Tensor:
    """RMS norm without Transformers' rounding to float32."""
    return module.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + module.variance_epsilon)


def split(encoded: EncodedComparisons, step: int, layout: Layout, rank: int, world: int) -> list[Batch]:
    comparisons = BatchPlan(np.diff(encoded.first_pair), PAIRS, seed=1).batch(0, step)
    parts = rank_micro_batches(encoded, comparisons, layout, rank, world)
    return [collate(encoded, part, layout) for part in parts]


def one_graph(model: RewardModel, objective: Objective, parts: list[Batch]) -> Tensor:
    scores = [model(part) for part in parts]
    pairs = Pairs.concatenate([part.pairs for part in parts], [len(score) for score in scores])
    return objective(Scores.concatenate(scores), pairs.select(pairs.columns["index"].argsort())).loss


def gradients(
    backbone: str,
    name: str,
    encoded: EncodedComparisons,
    size: int,
    *,
    oracle: bool = False,
    dropout: float = 0.0,
    packed: bool = False,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Tensor]:
    """Losses and gradients of one step, or of two with a small update between them if the objective has state.

    Args:
        backbone: a folder.
        name: of the objective.
        encoded: pairs of two steps.
        size: pairs in a micro-batch.
        oracle: one graph over the whole batch.
        dropout: of the backbone.
        packed: packed rows if the model takes them.
        rank, world: this rank and their number; gradients are averaged over ranks as DDP does.
    """
    model, objective = build(backbone, name, dropout)
    layout = Layout(0, packed and model.packs, size)
    found = {}
    for step in range(2 if any(True for _ in objective.buffers()) else 1):
        parts = split(encoded, step, layout, rank, world)
        model.zero_grad()
        loss = one_graph(model, objective, parts) if oracle else whole_batch_step(model, objective, parts).loss
        loss.backward()
        found[f"loss {step}"] = loss.detach()
        for key, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            if world > 1:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= world
            found[f"{key} {step}"] = parameter.grad.clone()
            parameter.data -= 0.1 * parameter.grad
    return found | {key: buffer.clone() for key, buffer in objective.named_buffers()}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same_for_every_split(backbone: str, name: str, encoded: EncodedComparisons) -> None:
    expected = gradients(backbone, name, encoded, PAIRS, oracle=True)
    assert any(value.abs().sum() > 0 for key, value in expected.items() if "embed_tokens" in key)
    torch.testing.assert_close(gradients(backbone, name, encoded, PAIRS), expected, **TOLERANCE)
    torch.testing.assert_close(gradients(backbone, name, encoded, 5), expected, **TOLERANCE)
    torch.testing.assert_close(gradients(backbone, name, encoded, 5, packed=True), expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["bt", "aplot", "inform"])
def test_the_second_pass_draws_what_the_first_pass_drew(backbone: str, name: str, encoded: EncodedComparisons) -> None:
    """Dropout, and the samples of InfoRM's bottleneck: the oracle draws once, in the same split."""
    expected = gradients(backbone, name, encoded, 5, oracle=True, dropout=0.1, packed=True)
    torch.testing.assert_close(gradients(backbone, name, encoded, 5, dropout=0.1, packed=True), expected, **TOLERANCE)
    assert (expected["loss 0"] - gradients(backbone, name, encoded, PAIRS)["loss 0"]).abs() > 1e-6


def test_two_ranks_have_the_gradients_of_one_process(
    backbone: str, encoded: EncodedComparisons, tmp_path: Path
) -> None:
    on_two_ranks(partial(_rank, backbone, encoded, tmp_path), tmp_path)
    for name in ON_RANKS:
        expected = gradients(backbone, name, encoded, PAIRS)
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


def test_objectives_differ(backbone: str, encoded: EncodedComparisons) -> None:
    """Otherwise the comparisons above would compare one objective with itself."""
    found: dict[str, Any] = {name: gradients(backbone, name, encoded, PAIRS)["loss 0"] for name in ON_RANKS}
    assert len({round(float(loss), 9) for loss in found.values()}) == len(ON_RANKS)


def _rank(backbone: str, encoded: EncodedComparisons, folder: Path, rank: int) -> None:
    for name in ON_RANKS:
        found = gradients(backbone, name, encoded, 5, rank=rank, world=2, packed=True)
        if rank == 0:
            torch.save(found, folder / f"{name}.pt")
