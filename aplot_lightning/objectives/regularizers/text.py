"""The text regularizer: the language-model likelihood of the chosen responses."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from aplot_lightning.objectives.component import Columns, Regularizer, positive, weighted_mean
from aplot_lightning.types import Scores


class Text(Regularizer):
    """Mixes in the likelihood of the chosen responses, so that the hidden states still predict text (GRM-SFT).

    Formula:
        (1 - α) L + α · mean -log σ(β log π(y⁺ given x)); the term added to L is α (text - L)

    log π is summed over the response's tokens.

    Args:
        alpha: α, from 0 to 1.
        beta: β, above 0.

    When to use it: few pairs, or pairs from another distribution than the texts to score: it preserves what the
    language model learned before. The model must keep its LM head (`model.keep_lm_head: true`).

    Source: GRM (2406.10216), its SFT regularization; α = 0.01 and β = 0.1 as in its release.

    Deviations: the default is a linear reward head; the release uses an MLP (`model.head`). Other regularizers are not
    scaled by 1 - α. The mean uses the data's weights.
    """

    tensors = ("log_probability",)

    def __init__(self, alpha: float = 0.01, beta: float = 0.1) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
        self.alpha = alpha
        self.beta = positive("beta", beta)

    def forward(self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        text = weighted_mean(functional.softplus(-self.beta * chosen.tensors["log_probability"]), weights)
        return self.alpha * (text - loss)

    def describe(self) -> str:
        return f"text (alpha {self.alpha:g}, beta {self.beta:g})"
