"""What all weightings share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from aplot_lightning.objectives.part import Part
from aplot_lightning.types import Scores


class Weighting(Part, ABC):
    """Base of all weightings."""

    @abstractmethod
    def forward(
        self, losses: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]
    ) -> Tensor:
        """A factor for each pair's loss, (n,), without gradient.

        Args:
            losses: (n,), the link's, with their graph.
            weights: (n,), the data's weights w; the loss is Σ w f ℓ / Σ w with the factors f.
            chosen: scores of the chosen responses, (n, ...).
            rejected: scores of the rejected responses, (n, ...).
            columns: the pairs' columns, (n,) each.
        """
