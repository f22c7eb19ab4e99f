"""Links: the pairwise loss of the gap minus the margin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.part import Part
from aplot_lightning.types import Scores


class Link(Part, ABC):
    """Base of all links: a subclass gives the loss of one signed, margin-shifted gap, and soft targets follow from it.

    Formula:
        t ℓ(Δ - m) + (1 - t) ℓ(-Δ - m)

    With a soft target the margin asks for more on both sides; for t = 1 this is ℓ(Δ - m).
    """

    @abstractmethod
    def pointwise(self, z: Tensor) -> Tensor:
        """ℓ(z), elementwise: (n,) -> (n,)."""

    def forward(
        self,
        gaps: Tensor,
        margins: Tensor,
        targets: Tensor,
        chosen: Scores,
        rejected: Scores,
        columns: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss of each pair: gaps Δ (n,), margins m (n,), targets t (n,) in [0, 1] -> (n,).

        The scores of both sides and the pairs' columns are for links that ask for more than the gap.
        """
        return targets * self.pointwise(gaps - margins) + (1 - targets) * self.pointwise(-gaps - margins)


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
