"""NormBT: pairs that lie close together in embedding space get as large a step as those far apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aplot_lightning.objectives.regularizers import weighted_mean
from aplot_lightning.objectives.weightings.base import Weighting
from aplot_lightning.types import Scores

NOISE = 1e-6  # share of the average below which a distance is float32 noise


class Norm(Weighting):
    """A running average of the distances between the pairs' embeddings over each pair's own distance.

    Formula:
        f_i = a / ‖h_i⁺ - h_i⁻‖
        a ← decay · a + (1 - decay) · Σ_i w_i ‖h_i⁺ - h_i⁻‖ / Σ_i w_i once per optimizer step, before it is used

    Args:
        decay: of the running average a, at least 0 and below 1. a starts at the first batch's mean, is kept in the
            checkpoint (`average`, scalar; 0 before the first batch) and moves only in training mode; in evaluation mode
            before any training the batch's own mean stands in for it.

    When to use it: pairs whose two responses are nearly the same (small edits, code, reasoning) hardly move a
    Bradley–Terry model, because the head's gradient grows with ‖h⁺ - h⁻‖.

    Source: NormBT (2512.06343); decay 0.9.

    Deviations: the batch's mean is over the whole optimizer batch and weighted by the data's weights. A pair whose
    distance is 0 (or below 1e-6 of the average, which is rounding) gets the factor 1 in place of a division by zero.
    """

    separable = False
    average: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.register_buffer("average", torch.zeros(()))

    @torch.no_grad()
    def forward(
        self, losses: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]
    ) -> Tensor:
        distances = torch.linalg.vector_norm(chosen.embeddings - rejected.embeddings, dim=1)
        average = self.average.to(distances)
        mean = weighted_mean(distances, weights)
        # a batch without any weight says nothing; tensors throughout, so that the host does not wait for the device
        moved = torch.where(weights.sum() > 0, self.decay * average + (1 - self.decay) * mean, average)
        moved = torch.where(average > 0, moved, mean)
        if self.training:
            self.average = moved
        else:
            moved = torch.where(average > 0, average, mean)
        small = distances <= NOISE * moved
        return torch.where(small, 1.0, moved / distances.masked_fill(small, 1.0))

    def describe(self) -> str:
        return f"norm weighting (decay {self.decay:g})"
