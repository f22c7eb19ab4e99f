"""ODIN's two heads: one for quality, one that takes the length."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from aplot_lightning.model.heads.head import Head, linear_layer


class QualityAndLength(Head):
    """Two linear rewards; their sum is trained, and the one of length is dropped when scoring.

    Formula:
        r_Q = w_Q · h (+ b_Q);  r_L = w_L · h (+ b_L);  o = |w_Q · w_L| / (‖w_Q‖ ‖w_L‖)
        r = r_Q + r_L in training mode,  r = r_Q in evaluation mode

    Gives: rewards (R,), quality_rewards (R,), length_rewards (R,), head_overlap (R,), which is o in each row.

    Args: none.

    When to use it: with ODIN's regularizers, which push what length explains into r_L and the two heads apart
    (conf/objective/odin.yaml). Without them the two heads are one linear head in two parts.

    Source: ODIN (2402.07319), section 3; the overlap of normalised weights and the plain sum follow the authors' code.

    Deviations: in their code the rewards come from weights that are centred and normalised to length 1 as well, which
    bounds a reward by the embedding's length; here only the overlap is normalised. Biases follow the architecture
    (theirs has none); they cancel in gaps and correlations.
    """

    kind: ClassVar[str] = "quality_and_length"
    tensor_names: ClassVar[frozenset[str]] = frozenset({"rewards", "quality_rewards", "length_rewards", "head_overlap"})

    def make_layers(self) -> None:
        self.rewards = linear_layer(self.in_features, 2, self.has_bias)  # quality, length

    def read(self, embeddings: Tensor) -> dict[str, Tensor]:
        quality, length = self.rewards(embeddings).unbind(-1)
        directions = nn.functional.normalize(self.rewards.weight, dim=-1, eps=1e-8)
        overlap = (directions[0] @ directions[1]).abs()
        return {
            "rewards": quality + length if self.training else quality,
            "quality_rewards": quality,
            "length_rewards": length,
            "head_overlap": overlap.expand(len(quality)),
        }
