"""The hinge link."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.links.base import Link


class Hinge(Link):
    """The support-vector loss: nothing more is asked of a pair whose gap passes its margin by one.

    Formula:
        ℓ(z) = max(0, 1 - z)

    When to use it: to stop pulling at pairs that are right by enough; gaps then stay near 1 instead of growing. σ(Δ) is
    no longer a probability.

    Source: Herbrich, Graepel and Obermayer 2000 (ranking by support vectors); method section 3 of this project.

    Deviations: none. At z = 1 the gradient is 0, one of the values that a subgradient may take.
    """

    def pointwise(self, z: Tensor) -> Tensor:
        return functional.relu(1 - z)

    def describe(self) -> str:
        return "hinge"
