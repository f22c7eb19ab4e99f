"""The language model kept alive beside the reward head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.options import positive
from aplot_lightning.objectives.regularizers.base import Regularizer, weighted_mean
from aplot_lightning.types import Scores


class Text(Regularizer):
    """Mixes in the likelihood of the chosen responses, so that hidden states still serve to write text (GRM-SFT).

    Formula:
        (1 - α) L + α · mean -log σ(β log π(y⁺ given x)); the term added to L is α (text - L)

    log π is summed over the response's tokens.

    Args:
        alpha: α, from 0 to 1.
        beta: β, above 0.

    When to use it: few pairs, or pairs of another distribution than those to be scored: it keeps what the language
    model knew. The model must keep its LM head (`model.keep_lm_head: true`).

    Source: GRM (2406.10216), its SFT regularization; α = 0.01 and β = 0.1 as in its release.

    Deviations: one linear reward head is enough here; the release puts an MLP on the hidden states (`model.head` can).
    Regularizers beside this one are not scaled by 1 - α. The mean carries the data's weights.
    """

    tensors = ("log_probability",)

    def __init__(self, alpha: float = 0.01, beta: float = 0.1) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
        self.alpha = alpha
        self.beta = positive("beta", beta)

    def forward(
        self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]
    ) -> Tensor:
        text = weighted_mean(functional.softplus(-self.beta * chosen.tensors["log_probability"]), weights)
        return self.alpha * (text - loss)

    def describe(self) -> str:
        return f"text (alpha {self.alpha:g}, beta {self.beta:g})"
