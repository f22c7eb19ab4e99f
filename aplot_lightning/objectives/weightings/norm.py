"""NormBT: pairs with similar embeddings get as large a gradient step as pairs with distant ones."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns, Weighting, weighted_mean
from aplot_lightning.types import Scores

NOISE = 1e-6  # a distance below this share of the average is float32 rounding error


class Norm(Weighting):
    """Divides a running average of the pairs' embedding distances by each pair's own distance.

    Formula:
        f_i = a / ‖h_i⁺ - h_i⁻‖
        a ← decay · a + (1 - decay) · Σ_i w_i ‖h_i⁺ - h_i⁻‖ / Σ_i w_i once per optimizer step, before it is used

    Args:
        decay: decay of the running average a, at least 0 and below 1. a starts at the first batch's mean, is saved in
            the checkpoint (`average`, scalar; 0 before the first batch) and changes only in training mode. In
            evaluation mode before any training, the batch's own mean is used.

    When to use it: many pairs have nearly identical responses (small edits, code, reasoning). Such pairs hardly change
    a Bradley–Terry model, because the head's gradient is proportional to ‖h⁺ - h⁻‖.

    Source: NormBT (2512.06343); decay 0.9.

    Deviations: the batch's mean is over the whole optimizer batch and weighted by the data's weights. A pair whose
    distance is 0 (or below 1e-6 of the average, which is rounding error) gets the factor 1.
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
    def forward(self, losses: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        distances = torch.linalg.vector_norm(chosen.embeddings - rejected.embeddings, dim=1)
        average = self.average.to(distances)
        mean = weighted_mean(distances, weights)
        # A batch without weight changes nothing. Tensor operations only, so that the host does not wait for the device.
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
