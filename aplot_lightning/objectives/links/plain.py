"""Links that need nothing but the gap: logistic, hinge, focal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.component import Link, not_negative


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


class Hinge(Link):
    """The support-vector loss: zero as soon as a pair's gap exceeds its margin by one.

    Formula:
        ℓ(z) = max(0, 1 - z)

    When to use it: to stop training on pairs that are right by enough; gaps then stay near 1 instead of growing. σ(Δ)
    is no longer a probability.

    Source: Herbrich, Graepel and Obermayer 2000 (ranking by support vectors); docs/method.md, section 3.

    Deviations: none. At z = 1 the gradient is 0, one of the possible subgradients.
    """

    def pointwise(self, z: Tensor) -> Tensor:
        return functional.relu(1 - z)

    def describe(self) -> str:
        return "hinge"


class Focal(Link):
    """Bradley–Terry with less weight on pairs that are already right.

    Formula:
        ℓ(z) = (1 - σ(z))^γ · -log σ(z)

    Args:
        gamma: γ, at least 0; 0 is the logistic link.

    When to use it: many easy pairs outweigh the hard ones. With noisy labels it puts more weight on the wrong labels.

    Source: focal loss (Lin and others 2017, 1708.02002), equation 4 without its class weights, applied to pairs
    (docs/method.md, section 3).

    Deviations: none. The factor is not detached, as in the source.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = not_negative("gamma", gamma)

    def pointwise(self, z: Tensor) -> Tensor:
        # (1 - σ(z))^γ is exp(-γ softplus(z)); a power of 0 would have an infinite slope for γ < 1.
        return torch.exp(-self.gamma * functional.softplus(z)) * functional.softplus(-z)

    def describe(self) -> str:
        return f"focal (gamma {self.gamma:g})"
