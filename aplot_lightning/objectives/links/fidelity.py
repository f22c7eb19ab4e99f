"""The fidelity link."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aplot_lightning.objectives.links.variance import GUARD, ThurstoneLink
from aplot_lightning.types import Scores


class Fidelity(ThurstoneLink):
    """How little the predicted preference overlaps with the target, as the fidelity of two distributions.

    Formula:
        1 - √(t p + 1e-6) - √((1 - t)(1 - p) + 1e-6), p = Φ((Δ - m) / √(2 v + 1e-6))

    Args:
        variance: v, the noise of one response: a number above 0; the name of a pair column that holds it, at least 0;
            or "model" for the model's own `variance` (R,), with 2 v = v⁺ + v⁻.

    When to use it: soft targets, or labels of which some are wrong: the loss of a pair never exceeds 1, and its slope
    dies out where the model is sure, right or wrong.

    Source: FRank (Tsai and others 2007); what DiNa-LRM (2602.11146) trains with, guards as in its code.

    Deviations: DiNa-LRM takes v = 2σ² + 0.05 from its noise level and has no margin. The target enters the
    formula itself, so with t = 0 a margin relaxes the pair instead of asking for more. For the guards the least value
    is -0.001, not 0.
    """

    def pointwise(self, z: Tensor) -> Tensor:
        """The loss of a hard pair, t = 1, whose gap is z of its own standard deviations: (n,) -> (n,)."""
        return self._overlap(z, torch.ones_like(z))

    def forward(
        self,
        gaps: Tensor,
        margins: Tensor,
        targets: Tensor,
        chosen: Scores,
        rejected: Scores,
        columns: Mapping[str, Tensor],
    ) -> Tensor:
        return self._overlap((gaps - margins) / self.scale(gaps, chosen, rejected, columns), targets)

    def _overlap(self, z: Tensor, targets: Tensor) -> Tensor:
        agree = torch.sqrt(targets * torch.special.ndtr(z) + GUARD)
        disagree = torch.sqrt((1 - targets) * torch.special.ndtr(-z) + GUARD)
        return 1 - agree - disagree

    def describe(self) -> str:
        return self._describe("fidelity")
