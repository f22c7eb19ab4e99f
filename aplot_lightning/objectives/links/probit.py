"""The probit link of Thurstone."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns
from aplot_lightning.objectives.links.thurstone import ThurstoneLink
from aplot_lightning.types import Scores


class Probit(ThurstoneLink):
    """Thurstone's likelihood: each response has a normal quality around its reward, and the larger draw is preferred.

    Formula:
        ℓ(z) = -log Φ(z / √(2 v + 1e-6)), by default with 2 v = 1, the standard probit of Δ

    Args:
        variance: v, the noise of one response: a number above 0; the name of a pair column that holds it, at least 0;
            or "model" for the model's own `variance` (R,), with 2 v = v⁺ + v⁻.

    When to use it: normal instead of logistic noise (the loss of a wrong pair grows with the square of its gap); with
    "model", to let the model predict which responses it is uncertain about.

    Source: Thurstone 1927, case V for a constant v and case III for v⁺ + v⁻; DiNa-LRM (2602.11146) for the use on
    rewards and the guard 1e-6.

    Deviations: a soft target mixes both sides as in `Link`. DiNa-LRM's variance is that of its noise level,
    2σ² + 0.05; here it is an option.
    """

    def pointwise(self, z: Tensor) -> Tensor:
        # In float64, because the slope of log_ndtr in float32 is wrong from |z| = 1000 on (6.5 times too large at 1e4).
        return -torch.special.log_ndtr(z.double()).to(z.dtype)

    def forward(
        self, gaps: Tensor, margins: Tensor, targets: Tensor, chosen: Scores, rejected: Scores, columns: Columns
    ) -> Tensor:
        scale = self.scale(gaps, chosen, rejected, columns)
        return super().forward(gaps / scale, margins / scale, targets, chosen, rejected, columns)

    def describe(self) -> str:
        return self._describe("probit")
