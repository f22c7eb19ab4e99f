"""Oracle: one autograd graph over the whole optimizer batch, which gradient caching must reproduce for any split."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aplot_lightning.objectives import (
    ConstantMargin,
    InstanceMargin,
    LabelSmoothing,
    Objective,
    TransportMargin,
)
from aplot_lightning.training.gradient_cache import whole_batch_step
from aplot_lightning.types import Batch, Pairs, Scores
from tests.ranks import on_two_ranks

PAIRS, STEPS = 32, 3
SPLITS = {"even": [8, 8, 8, 8], "uneven": [3, 2, 20, 7]}  # two micro-batches a rank
OBJECTIVES = {
    "bt": Objective(),
    "constant": Objective(margin=ConstantMargin(0.3)),
    "label_smoothing": Objective(target=LabelSmoothing(0.1)),
    "instance": Objective(margin=InstanceMargin()),
    "transport": Objective(margin=TransportMargin()),
    "transport_attached": Objective(margin=TransportMargin(detach=False)),
    "transport_mass": Objective(margin=TransportMargin(reading="mass", factor=4.0)),
}


class TinyModel(nn.Module):
    """Token embeddings, a mean, dropout and a head: enough to tell embeddings' gradients from rewards'."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.tokens = nn.Embedding(50, 12)
        self.mix = nn.Linear(12, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 1, bias=False)

    def forward(self, batch: Batch) -> Scores:
        mask = batch.attention_mask[..., None].float()
        mean = (self.tokens(batch.input_ids) * mask).sum(1) / mask.sum(1)
        embeddings = self.dropout(torch.tanh(self.mix(mean)))
        return Scores({"rewards": self.head(embeddings)[:, 0].float(), "embeddings": embeddings.float()})


def batches(seed: int, sizes: list[int]) -> list[Batch]:
    """An optimizer batch of random pairs, cut into micro-batches of `sizes` pairs."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 50, (sum(sizes), 2, 6), generator=generator)
    parts, start = [], 0
    for size in sizes:
        rows = tokens[start : start + size].reshape(-1, 6) if size else tokens[:1, 0]
        index = torch.arange(start, start + size)
        place = torch.arange(size)
        pairs = Pairs(2 * place, 2 * place + 1, {"index": index, "weight": torch.ones(size)})
        parts.append(Batch(rows, torch.ones_like(rows), torch.full((len(rows),), 5), pairs))
        start += size
    return parts


def train(sizes: list[int], objective: Objective, dropout: float = 0.0, oracle: bool = False) -> dict[str, Tensor]:
    model = TinyModel(dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    objective = copy.deepcopy(objective)
    torch.manual_seed(3)
    for step in range(STEPS):
        parts = batches(step, sizes)
        model.zero_grad()
        if oracle:
            scores = [model(part) for part in parts]
            pairs = Pairs.concatenate([part.pairs for part in parts], [len(score) for score in scores])
            loss = objective(Scores.concatenate(scores), pairs).loss
        else:
            loss = whole_batch_step(model, objective, parts).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()} | {"loss": loss.detach()}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("sizes", [[32], [8] * 4, [1] * 32, [20, 0, 5, 7]], ids=str)
def test_weights_equal_those_of_one_graph_over_the_whole_batch(name: str, sizes: list[int]) -> None:
    expected = train([PAIRS], OBJECTIVES[name], oracle=True)
    torch.testing.assert_close(train(sizes, OBJECTIVES[name]), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_dropout_repeats_itself_in_the_second_pass(name: str) -> None:
    expected = train([8] * 4, OBJECTIVES[name], dropout=0.3, oracle=True)
    torch.testing.assert_close(train([8] * 4, OBJECTIVES[name], dropout=0.3), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("name", "forwards"), [("bt", 4), ("instance", 4), ("transport", 8)])
def test_the_second_pass_is_taken_only_where_it_is_needed(name: str, forwards: int) -> None:
    model, calls = TinyModel(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    whole_batch_step(model, OBJECTIVES[name], batches(0, [8] * 4))
    assert len(calls) == forwards
    calls.clear()
    whole_batch_step(model, OBJECTIVES[name], batches(0, [32]))
    assert len(calls) == 1


def test_autocast_loses_no_gradient_between_the_passes() -> None:
    """A weight cast to bf16 in the pass without gradients must not be reused in the pass with them."""
    objective, gradients = OBJECTIVES["transport"], []
    for sizes in ([32], [8] * 4):
        model = TinyModel()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = whole_batch_step(model, objective, batches(0, sizes)).loss
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[1].values())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.1, atol=1e-3)


def test_two_ranks_and_uneven_ones_equal_one(tmp_path: Path) -> None:
    """Two gloo ranks of 2 x 8 pairs, and of 5 and 27 pairs, with the gradients averaged as DDP does."""
    on_two_ranks(partial(_rank, tmp_path), tmp_path)
    for name, objective in OBJECTIVES.items():
        expected = train([PAIRS], objective, oracle=True)
        for split in SPLITS:
            weights = torch.load(tmp_path / f"{name}-{split}.pt", weights_only=True)
            torch.testing.assert_close(weights, expected, rtol=1e-4, atol=5e-6, msg=lambda m, n=name: f"{n}: {m}")


def _rank(folder: Path, rank: int) -> None:
    for name, objective in OBJECTIVES.items():
        for split, sizes in SPLITS.items():
            model = TinyModel()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            for step in range(STEPS):
                model.zero_grad()
                own = batches(step, sizes)[2 * rank : 2 * rank + 2]
                loss = whole_batch_step(model, objective, own).loss
                loss.backward()
                for parameter in model.parameters():
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= 2
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
            if rank == 0:
                torch.save({**model.state_dict(), "loss": loss.detach()}, folder / f"{name}-{split}.pt")
