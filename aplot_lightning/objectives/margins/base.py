"""What all margins share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from aplot_lightning.objectives.part import Part
from aplot_lightning.types import Scores


class Margin(Part, ABC):
    """Base of all margins."""

    @abstractmethod
    def forward(self, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]) -> Tensor:
        """Scores of both sides of n pairs and the pairs' columns -> m (n,), in the rewards' dtype.

        The margin carries no gradient unless the part has an option `detach` and it is False.
        """
