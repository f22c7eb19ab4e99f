"""The prior constraint: an upper bound on the gap, from the similarity of the two responses."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.component import Columns, Regularizer, finite, positive, required_column, weighted_mean
from aplot_lightning.transport import check_choice
from aplot_lightning.types import Scores

Similarity = Literal["length", "cosine", "fixed", "random"]
PUBLISHED = {"length": (10.0, -5.0), "cosine": (30.0, -25.0)}  # β1 and β3 on TL;DR
BETA2 = 0.001
FIXED = 3.0
WORD = 0xFFFFFFFF


class PriorConstraint(Regularizer):
    """Keeps each gap below a bound, which is looser for two responses that are less similar (PCRM).

    Formula:
        mean -log σ(δ*_i - Δ_i), δ*_i = β1 / (s_i + 0.001) + β3

    with the similarity s_i in [0, 1]:

    - "length": the shorter over the longer response, in tokens after the first difference (1 if there are none)
    - "cosine": (π - arccos c) / π, c the cosine of the two embeddings clamped to [0, 1]
    - "fixed": no similarity, δ* = 3
    - "random": no similarity, δ* from U(1, 2)

    Args:
        similarity: one of these; the last two are the paper's controls.
        beta1: β1, above 0; null takes the value published for TL;DR: length 10, cosine 30.
        beta3: β3; null takes the value published for TL;DR: length -5, cosine -25. (For AlpacaFarm both used 20 and
            -15.)

    When to use it: rewards grow without bound in training or under reinforcement learning.

    Source: PCRM (2404.00978) and its release: formula, clamp, 0.001, constants and controls. The weight is that of L,
    as there.

    Deviations: the release applies both terms at every token after the first difference, we at the scored token. Its
    cosine uses the first token of a frozen BERT; ours uses the reward model's own embeddings, detached. Its random
    bound is drawn anew each time; ours is a hash of the pair's `index`, the same in every epoch, rank and split.
    """

    def __init__(
        self, similarity: Similarity = "length", beta1: float | None = None, beta3: float | None = None
    ) -> None:
        super().__init__()
        check_choice("similarity", similarity, get_args(Similarity))
        for name, value in (("beta1", beta1), ("beta3", beta3)):
            if similarity not in PUBLISHED and value is not None:
                raise ValueError(f"{name} must be null with the similarity {similarity}, got {value}")
        if similarity in PUBLISHED:
            beta1 = positive("beta1", PUBLISHED[similarity][0] if beta1 is None else beta1)
            beta3 = finite("beta3", PUBLISHED[similarity][1] if beta3 is None else beta3)
        self.similarity: Similarity = similarity
        self.beta1 = beta1
        self.beta3 = beta3
        self.columns = {"length": ("chosen_suffix", "rejected_suffix"), "random": ("index",)}.get(similarity, ())

    def forward(self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        gaps = chosen.rewards - rejected.rewards
        return weighted_mean(functional.softplus(gaps - self.bounds(chosen, rejected, columns)), weights)

    @torch.no_grad()
    def bounds(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        """δ*, (n,) in the rewards' dtype, without gradient."""
        if self.similarity == "fixed":
            return torch.full_like(chosen.rewards, FIXED)
        if self.similarity == "random":
            return 1 + uniform_of(required_column(columns, "index", "PriorConstraint")).to(chosen.rewards)
        assert self.beta1 is not None
        assert self.beta3 is not None
        return self.beta1 / (self._similarity_of(chosen, rejected, columns) + BETA2) + self.beta3

    def _similarity_of(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        if self.similarity == "cosine":
            cosine = functional.cosine_similarity(chosen.embeddings, rejected.embeddings, dim=-1)
            return 1 - torch.arccos(cosine.clamp(0, 1)).to(chosen.rewards) / math.pi
        first, second = (
            required_column(columns, f"{side}_suffix", "PriorConstraint").to(chosen.rewards)
            for side in ("chosen", "rejected")
        )
        shorter, longer = torch.minimum(first, second), torch.maximum(first, second)
        return torch.where(longer > 0, shorter / longer.clamp(min=1), 1)

    def describe(self) -> str:
        if self.similarity not in PUBLISHED:
            return f"prior constraint ({self.similarity})"
        return f"prior constraint ({self.similarity}, beta1 {self.beta1:g}, beta3 {self.beta3:g})"


def uniform_of(index: Tensor) -> Tensor:
    """A number in [0, 1) for each index by an integer hash (xor-shift and multiply): (n,) int64 -> (n,) float64."""
    state = ((index ^ (index >> 32)) + 0x9E3779B9) & WORD
    for _ in range(2):
        state = ((state ^ (state >> 16)) * 0x45D9F3B) & WORD
    return (state ^ (state >> 16)).double() / 2**32
