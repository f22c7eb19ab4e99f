"""The regularizer of the two heads that separate quality from length."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns, Regularizer, not_negative, required_column, weighted_mean
from aplot_lightning.types import Scores

NO_SPREAD = 1e-12  # a variance below this share of the mean square is rounding error


class LengthDecorrelation(Regularizer):
    """Moves the part of the reward that depends on length into its own head, which is dropped when scoring (ODIN).

    Formula:
        λ_L (|corr(q, ℓ)| - corr(l, ℓ)) + λ_O · overlap

    over all 2n responses of the optimizer batch: q the quality head's rewards, l the length head's, ℓ the length in
    tokens, corr Pearson's correlation (0 if one side is constant), overlap the |cosine| of the two heads' weights,
    which the model provides. The loss of the pairs uses q + l, which the head returns as the rewards in training.

    Args:
        length_weight: λ_L, at least 0.
        overlap_weight: λ_O, at least 0.

    When to use it: chosen responses are longer than rejected ones and the reward learns length instead of quality. The
    model must have ODIN's two heads (`model.head`).

    Source: ODIN (2402.07319): ranking loss on the sum, the two correlations, orthogonal heads, both weights 1 (as in
    the scripts of its release).

    Deviations: the full paper was not available; this follows its summary and its release. The release writes
    1 - corr(l, ℓ), which has the same gradient; it gathers over ranks but correlates within one micro-batch; it counts
    the tokens of prompt and response, we those of the response; and it has another term |corr(q + l, ℓ)|, which we
    omit because it is not in the paper's loss and counteracts the length head. A response in several pairs counts in
    each of them, with the data's weights.
    """

    separable = False
    columns = ("chosen_length", "rejected_length")
    tensors = ("quality_rewards", "length_rewards", "head_overlap")

    def __init__(self, length_weight: float = 1.0, overlap_weight: float = 1.0) -> None:
        super().__init__()
        self.length_weight = not_negative("length_weight", length_weight)
        self.overlap_weight = not_negative("overlap_weight", overlap_weight)

    def forward(self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        quality, length_rewards, overlap = (
            torch.cat([chosen.tensors[name], rejected.tensors[name]]) for name in self.tensors
        )
        lengths = torch.cat(
            [required_column(columns, name, "LengthDecorrelation").to(quality) for name in self.columns]
        )
        both = torch.cat([weights, weights])
        spurious = correlation(quality, lengths, both).abs() - correlation(length_rewards, lengths, both)
        return self.length_weight * spurious + self.overlap_weight * weighted_mean(overlap, both)

    def describe(self) -> str:
        return f"length decorrelation (length {self.length_weight:g}, overlap {self.overlap_weight:g})"


def correlation(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Pearson's correlation of (R,) and (R,) with weights (R,) -> scalar; 0 without gradient if one is constant."""
    one, two = first - weighted_mean(first, weights), second - weighted_mean(second, weights)
    spreads = weighted_mean(one**2, weights), weighted_mean(two**2, weights)
    varies = [
        spread > NO_SPREAD * weighted_mean(values**2, weights)
        for spread, values in zip(spreads, (first, second), strict=True)
    ]
    defined = varies[0] & varies[1]
    scale = torch.where(defined, spreads[0] * spreads[1], 1).sqrt()
    return torch.where(defined, weighted_mean(one * two, weights) / scale, 0)
