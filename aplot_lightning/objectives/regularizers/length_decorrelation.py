"""A quality reward that does not know the response's length."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aplot_lightning.objectives.options import not_negative
from aplot_lightning.objectives.part import required_column
from aplot_lightning.objectives.regularizers.base import Regularizer, weighted_mean
from aplot_lightning.types import Scores

NO_SPREAD = 1e-12  # a variance below this share of the mean square is rounding


class LengthDecorrelation(Regularizer):
    """Sorts what a reward says about length into a head of its own, which is dropped when scoring (ODIN).

    Formula:
        λ_L (|corr(q, ℓ)| - corr(l, ℓ)) + λ_O · overlap

    over all 2n responses of the optimizer batch: q the quality head's rewards, l the length head's, ℓ the length in
    tokens, corr Pearson's correlation (0 where one side does not vary), overlap the |cosine| of the two heads' weights,
    from the model. The pairs' loss itself is on q + l, which the head gives as the rewards while training.

    Args:
        length_weight: λ_L, at least 0.
        overlap_weight: λ_O, at least 0.

    When to use it: chosen responses are longer than rejected ones and the reward learns length for quality. The model
    must have ODIN's two heads (`model.head`).

    Source: ODIN (2402.07319): ranking loss on the sum, the two correlations, orthogonal heads, both weights 1 (as in
    the scripts of its release).

    Deviations: the paper's text could not be had in full; this follows its summary and its release. The release writes
    1 - corr(l, ℓ), which has the same gradient; gathers over ranks but correlates within one micro-batch; counts a
    length as all tokens, prompt included, where ours are the response's; and has a further term |corr(q + l, ℓ)|,
    which we leave out, since it is not in the paper's loss and works against the length head. A response that takes
    part in several pairs counts in each, with the data's weights.
    """

    separable = False
    columns = ("chosen_length", "rejected_length")
    tensors = ("quality_rewards", "length_rewards", "head_overlap")

    def __init__(self, length_weight: float = 1.0, overlap_weight: float = 1.0) -> None:
        super().__init__()
        self.length_weight = not_negative("length_weight", length_weight)
        self.overlap_weight = not_negative("overlap_weight", overlap_weight)

    def forward(
        self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Mapping[str, Tensor]
    ) -> Tensor:
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
    """Pearson's correlation of (R,) and (R,) with weights (R,) -> scalar; 0, without slope, where one does not vary."""
    one, two = first - weighted_mean(first, weights), second - weighted_mean(second, weights)
    spreads = weighted_mean(one**2, weights), weighted_mean(two**2, weights)
    varies = [
        spread > NO_SPREAD * weighted_mean(values**2, weights)
        for spread, values in zip(spreads, (first, second), strict=True)
    ]
    sound = varies[0] & varies[1]
    scale = torch.where(sound, spreads[0] * spreads[1], 1).sqrt()
    return torch.where(sound, weighted_mean(one * two, weights) / scale, 0)
