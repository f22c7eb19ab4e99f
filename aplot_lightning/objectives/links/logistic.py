"""The logistic link of Bradley and Terry."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.links.base import Link


class Logistic(Link):
    """The Bradley–Terry likelihood.

    Formula:
        ℓ(z) = -log σ(z) = softplus(-z)

    When to use it: the default; σ(Δ) is then the probability that chosen is preferred.

    Source: Bradley and Terry 1952; InstructGPT (2203.02155), equation 1.

    Deviations: none. Always in the softplus form, which does not overflow.
    """

    def pointwise(self, z: Tensor) -> Tensor:
        return functional.softplus(-z)

    def describe(self) -> str:
        return "logistic"
