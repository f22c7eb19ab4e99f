"""What every regularizer is, and the mean that separable ones take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from aplot_lightning.objectives.part import Part
from aplot_lightning.types import Scores


class Regularizer(Part, ABC):
    """Base of all regularizers."""

    @abstractmethod
    def forward(
        self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]
    ) -> Tensor:
        """The term to add, a scalar.

        Args:
            loss: scalar, the weighted mean of the pairs' losses, for terms that mix with it.
            weights: (n,), the data's weights; a separable term is a mean with these.
            chosen: scores of the chosen responses, (n, ...).
            rejected: scores of the rejected responses, (n, ...).
            columns: the pairs' columns, (n,) each.
        """


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w x / Σ w over pairs, (n,) and (n,) -> scalar; 0 where all weights are 0."""
    total = weights.sum()
    return (weights * values).sum() / torch.where(total > 0, total, 1)
