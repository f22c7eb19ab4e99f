"""The cost of exact gradients over the whole optimizer batch: step times with and without the second pass.

    python benchmarks/exact_batch.py [--rounds 7] [--threads 2]

Steps on one optimizer batch of 32 pairs in micro-batches of 8: pairs of the embedded world with the quickstart's
decoder, and longer random rows with a deeper one. Sides alternate within a round; the table gives medians, and medians
of the ratios within rounds, since machines drift. A step is forward, objective, backward, AdamW.

- one pass: Bradley-Terry, a mean over pairs, one forward and backward per micro-batch
- per micro-batch: APLOT with a plan over each micro-batch, a different, weaker method that needs no second pass
- exact: APLOT with the plan over all 32 pairs; a forward without gradients comes first
- undivided: APLOT with all 32 pairs in one forward, which needs no second pass but the most memory
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from transformers import LlamaConfig, LlamaModel

from aplot_lightning import RewardModel
from aplot_lightning.model.heads import make_head
from aplot_lightning.objectives import Objective, TransportMargin
from aplot_lightning.training.gradient_cache import whole_batch_step
from aplot_lightning.types import Batch, Pairs

PAIRS, MICRO = 32, 8


def batches(vocabulary: int, length: int, size: int) -> list[Batch]:
    """PAIRS random pairs of `length` tokens per side, `size` pairs per micro-batch."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(5, vocabulary, (2 * PAIRS, length), generator=generator)
    cut = []
    for start in range(0, PAIRS, size):
        part = rows[2 * start : 2 * (start + size)]
        index = torch.arange(size)
        columns = {"index": start + index, "weight": torch.ones(size)}
        end = torch.full((2 * size,), length - 1)
        cut.append(Batch(part, torch.ones_like(part), end, Pairs(2 * index, 2 * index + 1, columns)))
    return cut


def deeper(model: RewardModel) -> RewardModel:
    """The same reward model around a decoder of 6 layers of width 384."""
    config = LlamaConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        vocab_size=4000,
        use_cache=False,
    )
    model.backbone.model = LlamaModel(config)
    model.head = make_head(None, 384, False, None, deviation=0.02, seed=0)
    return model


def step(model: RewardModel, optimizer: torch.optim.Optimizer, objective: Objective, cut: list[Batch]) -> None:
    optimizer.zero_grad()
    whole_batch_step(model, objective, cut).loss.backward()
    optimizer.step()


def split_step(model: RewardModel, optimizer: torch.optim.Optimizer, objective: Objective, cut: list[Batch]) -> None:
    optimizer.zero_grad()
    for part in cut:
        (whole_batch_step(model, objective, [part]).loss / len(cut)).backward()
    optimizer.step()


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, model: RewardModel, length: int, rounds: int) -> str:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    vocabulary = model.backbone.model.get_input_embeddings().num_embeddings
    cut, whole = batches(vocabulary, length, MICRO), batches(vocabulary, length, PAIRS)
    bt, aplot = Objective(), Objective(margin=TransportMargin())
    sides = {
        "one pass": lambda: step(model, optimizer, bt, cut),
        "per micro-batch": lambda: split_step(model, optimizer, aplot, cut),
        "exact": lambda: step(model, optimizer, aplot, cut),
        "undivided": lambda: step(model, optimizer, aplot, whole),
    }
    for run in sides.values():
        run()
    times = [{side: seconds(run) for side, run in sides.items()} for _ in range(rounds)]
    medians = [f"{1000 * statistics.median(t[side] for t in times):.0f} ms" for side in sides]
    ratios = [statistics.median(t["exact"] / t[side] for t in times) for side in ("one pass", "per micro-batch")]
    return f"| {name} | {' | '.join(medians)} | {ratios[0]:.2f} | {ratios[1]:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of exact whole-batch objectives")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{date.today()}, {platform.machine()}, {options.threads} threads, torch {torch.__version__}")
    print(
        "| model, tokens a row | one pass | per micro-batch | exact | undivided | exact / one pass | exact / weaker |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    world = RewardModel.from_backbone("world-decoder")
    print(measure("2 layers of 128, 40 tokens", world, 40, options.rounds))
    print(
        measure("6 layers of 384, 160 tokens", deeper(RewardModel.from_backbone("world-decoder")), 160, options.rounds)
    )


if __name__ == "__main__":
    main()
