"""Scores and pairs of a small batch, shared by the tests of every component."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from aplot_lightning.types import Pairs, Scores


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., tuple[Scores, Pairs]]:
    """make_batch(n, seed=0, dtype=float64, **columns): 2n responses in mixed order and n pairs over them."""

    def make(n: int, seed: int = 0, dtype: torch.dtype = torch.float64, **columns) -> tuple[Scores, Pairs]:
        generator = torch.Generator().manual_seed(seed)
        rewards = torch.randn(2 * n, generator=generator, dtype=torch.float64).to(dtype)
        embeddings = torch.randn(2 * n, 6, generator=generator, dtype=torch.float64).to(dtype)
        order = torch.randperm(2 * n, generator=generator)
        given = {name: column for name, column in columns.items() if column is not None}
        tensors = {name: torch.as_tensor(column, dtype=torch.float32) for name, column in given.items()}
        return Scores({"rewards": rewards, "embeddings": embeddings}), Pairs(order[:n], order[n:], tensors)

    return make


@pytest.fixture(scope="session")
def make_full_batch(make_batch) -> Callable[..., tuple[Scores, Pairs]]:
    """make_full_batch(n, seed=0, dtype=float64, **columns): with every tensor and column that a component needs."""

    def make(n: int, seed: int = 0, dtype: torch.dtype = torch.float64, **columns) -> tuple[Scores, Pairs]:
        scores, pairs = make_batch(n, seed, dtype, **columns)
        draw = np.random.default_rng(seed)
        extra = {
            "kl": draw.exponential(size=2 * n),
            "log_probability": -10 * draw.exponential(size=2 * n),
            "quality_rewards": draw.normal(size=2 * n),
            "length_rewards": draw.normal(size=2 * n),
            "head_overlap": np.full(2 * n, 0.3),
            "variance": draw.uniform(0.2, 3, size=2 * n),
            "confidence": draw.uniform(0.2, 30, size=2 * n),
        }
        for side in ("chosen", "rejected"):
            for name in ("length", "suffix"):
                pairs.columns[f"{side}_{name}"] = torch.from_numpy(draw.integers(25, 40, n)).float()
        pairs.columns["index"] = torch.arange(n) + 100 * seed
        pairs.columns["source"] = torch.tensor([0, 7, 7, 0, 2, 7, 2, 0])[:n]
        tensors = {name: torch.tensor(value, dtype=dtype) for name, value in extra.items()}
        tensors["member_rewards"] = scores.rewards[:, None] + torch.tensor([-1.0, 0.0, 1.0], dtype=dtype)
        return Scores({**scores.tensors, **tensors}), pairs

    return make
