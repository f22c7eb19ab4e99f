"""An ensemble of heads in one run: the objective of every member, averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.couplings import Coupling
from aplot_lightning.objectives.links import Link
from aplot_lightning.objectives.margins import Margin
from aplot_lightning.objectives.objective import Objective, ObjectiveResult
from aplot_lightning.objectives.part import missing_tensor
from aplot_lightning.objectives.regularizers import Regularizer
from aplot_lightning.objectives.targets import Target
from aplot_lightning.objectives.weightings import Weighting
from aplot_lightning.transport import at_least_float32
from aplot_lightning.types import Pairs, Scores


class EnsembleObjective(Objective):
    """The composed objective applied to each member's rewards, averaged over the members.

    Formula:
        L = 1/K Σ_k L(member k's rewards), with L as in `Objective`; the result's gaps and margins are those of the
        mean reward

    Args:
        link, margin, target, coupling, weighting, regularizers: as in `Objective`; each member's loss is made of them.

    Needs `member_rewards` (R, K) from the model: a head with K members.

    When to use it: K heads with different starts on one backbone, trained in one run; how far they disagree marks
    responses on which the reward is not to be trusted (mean, minimum or mean - variance when scoring).

    Source: reward-model ensembles (Coste et al., 2310.02743); heads on a shared backbone as GRM's ensemble baseline
    (2406.10216).

    Deviations: members share the backbone, the batch and its order, and differ by their start alone.

    Raises:
        ValueError: a part that keeps state between steps, which each member would have to have for itself.
    """

    def __init__(
        self,
        link: Link | None = None,
        margin: Margin | None = None,
        target: Target | None = None,
        coupling: Coupling | None = None,
        weighting: Weighting | None = None,
        regularizers: list[Regularizer] | None = None,
    ) -> None:
        super().__init__(link, margin, target, coupling, weighting, regularizers)
        for part in self.parts:
            if next(part.buffers(), None) is not None:
                raise ValueError(
                    f"EnsembleObjective must be made of parts without state, got {type(part).__name__} with "
                    f"{next(part.named_buffers())[0]!r}"
                )

    @property
    def tensors(self) -> dict[str, str]:
        return {**super().tensors, "member_rewards": type(self).__name__}

    def describe(self) -> str:
        return f"ensemble of heads: {super().describe()}"

    def forward(self, scores: Scores, pairs: Pairs) -> ObjectiveResult:
        """As `Objective.forward`, over member_rewards (R, K), K >= 1.

        Raises:
            ValueError: member_rewards of another shape.
            UserError: the model gives no member_rewards.
        """
        if "member_rewards" not in scores.tensors:
            raise missing_tensor("member_rewards", type(self).__name__)
        members = at_least_float32(scores.tensors["member_rewards"])
        if members.dim() != 2 or members.shape[0] != len(scores) or members.shape[1] == 0:
            raise ValueError(
                f"member_rewards must have shape ({len(scores)}, K) with K >= 1, got {tuple(members.shape)}"
            )
        losses = [self._with_rewards(rewards, scores, pairs).loss for rewards in members.unbind(1)]
        mean = self._with_rewards(members.mean(1), scores, pairs)
        return ObjectiveResult(torch.stack(losses).mean(), mean.gaps, mean.margins)

    def _with_rewards(self, rewards: Tensor, scores: Scores, pairs: Pairs) -> ObjectiveResult:
        return super().forward(Scores({**scores.tensors, "rewards": rewards}), pairs)
