"""Scores and pairs of a small batch, shared by the tests of every part."""

from __future__ import annotations

from collections.abc import Callable

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
        tensors = {name: torch.as_tensor(column, dtype=torch.float32) for name, column in columns.items()}
        return Scores({"rewards": rewards, "embeddings": embeddings}), Pairs(order[:n], order[n:], tensors)

    return make
