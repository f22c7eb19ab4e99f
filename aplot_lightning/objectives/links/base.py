"""What every link is: a loss of the margin-shifted gap, from which soft targets follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

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
