"""The regularizer of the bottleneck head."""

from __future__ import annotations

from torch import Tensor

from aplot_lightning.objectives.component import Columns, Regularizer, not_negative, weighted_mean
from aplot_lightning.types import Scores


class InformationBottleneck(Regularizer):
    """Penalizes the information that the latent state of each response carries beyond the prior (InfoRM).

    Formula:
        β · mean (KL_i⁺ + KL_i⁻), KL = KL(q(s given h) ‖ N(0, I)), from the model's bottleneck head

    Args:
        beta: β, at least 0.

    When to use it: to keep features that preferences do not need, such as length or style, out of the reward. The model
    must have a bottleneck head (`model.head`).

    Source: InfoRM (2402.09345), β = 0.1 with a latent of 128.

    Deviations: the two sides are added, not averaged (docs/method.md, section 3). The mean uses the data's weights.
    """

    tensors = ("kl",)

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = not_negative("beta", beta)

    def forward(self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        return self.beta * weighted_mean(chosen.tensors["kl"] + rejected.tensors["kl"], weights)

    def describe(self) -> str:
        return f"information bottleneck {self.beta:g}"
