"""The fidelity link."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns
from aplot_lightning.objectives.links.thurstone import GUARD, ThurstoneLink
from aplot_lightning.types import Scores


class Fidelity(ThurstoneLink):
    """One minus the fidelity (overlap) of the predicted preference and the target.

    Formula:
        1 - √(t p + 1e-6) - √((1 - t)(1 - p) + 1e-6), p = Φ((Δ - m) / √(2 v + 1e-6))

    Args:
        variance: v, the noise of one response: a number above 0; the name of a pair column that holds it, at least 0;
            or "model" for the model's own `variance` (R,), with 2 v = v⁺ + v⁻.

    When to use it: soft targets, or some wrong labels: the loss of a pair never exceeds 1, and its slope vanishes
    where the model is certain, whether right or wrong.

    Source: FRank (Tsai and others 2007); the training loss of DiNa-LRM (2602.11146), with the guards of its code.

    Deviations: DiNa-LRM takes v = 2σ² + 0.05 from its noise level and has no margin. The target is part of
    the formula, so with t = 0 a margin relaxes the pair instead of asking for more. Because of the guards the minimum
    is -0.001, not 0.
    """

    def pointwise(self, z: Tensor) -> Tensor:
        """The loss for t = 1 of gaps z in units of their standard deviation: (n,) -> (n,)."""
        return self._overlap(z, torch.ones_like(z))

    def forward(
        self, gaps: Tensor, margins: Tensor, targets: Tensor, chosen: Scores, rejected: Scores, columns: Columns
    ) -> Tensor:
        return self._overlap((gaps - margins) / self.scale(gaps, chosen, rejected, columns), targets)

    def _overlap(self, z: Tensor, targets: Tensor) -> Tensor:
        agree = torch.sqrt(targets * torch.special.ndtr(z) + GUARD)
        disagree = torch.sqrt((1 - targets) * torch.special.ndtr(-z) + GUARD)
        return 1 - agree - disagree

    def describe(self) -> str:
        return self._describe("fidelity")
