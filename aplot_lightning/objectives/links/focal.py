"""The focal link."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.links.base import Link
from aplot_lightning.objectives.options import not_negative


class Focal(Link):
    """Bradley–Terry that turns away from pairs which are already right.

    Formula:
        ℓ(z) = (1 - σ(z))^γ · -log σ(z)

    Args:
        gamma: γ, at least 0; 0 is the logistic link.

    When to use it: many easy pairs drown the hard ones. With noisy labels it turns towards the wrong ones.

    Source: focal loss (Lin and others 2017, 1708.02002), equation 4 without its class weights, applied to pairs in
    method section 3 of this project.

    Deviations: the factor is not detached, as in the source.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = not_negative("gamma", gamma)

    def pointwise(self, z: Tensor) -> Tensor:
        # (1 - σ(z))^γ = exp(-γ softplus(z)): a power of 0 would have an infinite slope for γ < 1
        return torch.exp(-self.gamma * functional.softplus(z)) * functional.softplus(-z)

    def describe(self) -> str:
        return f"focal (gamma {self.gamma:g})"
