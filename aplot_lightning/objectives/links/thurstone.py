"""Base of the links of Thurstone's model: where the noise of a pair comes from."""

from __future__ import annotations

from abc import ABC

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns, Link, positive, required_column
from aplot_lightning.types import Scores

GUARD = 1e-6


class ThurstoneLink(Link, ABC):
    """Base of the links with normal noise on each response's quality: p = Φ(z / √(2 v + 1e-6)).

    Args:
        variance: v, the noise of one response: a number above 0; the name of a pair column that holds it, at least 0;
            or "model" for the model's own `variance` (R,), with 2 v = v⁺ + v⁻.
    """

    def __init__(self, variance: float | str = 0.5) -> None:
        super().__init__()
        if variance == "model":
            self.tensors = ("variance",)
        elif isinstance(variance, str):
            self.columns = (variance,)
        else:
            positive("variance", variance)
        self.variance = variance

    def scale(self, gaps: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        """√(2 v + 1e-6), (n,) in the gaps' dtype."""
        if self.variance == "model":
            doubled = chosen.tensors["variance"] + rejected.tensors["variance"]
        elif isinstance(self.variance, str):
            doubled = 2 * required_column(columns, self.variance, type(self).__name__).to(gaps)
        else:
            doubled = torch.full_like(gaps, 2 * self.variance)
        return torch.sqrt(doubled + GUARD)

    def _describe(self, name: str) -> str:
        if self.variance == "model":
            return f"{name} (the model's variance)"
        if isinstance(self.variance, str):
            return f"{name} (variance from the column {self.variance})"
        return f"{name} (variance {self.variance:g})"
