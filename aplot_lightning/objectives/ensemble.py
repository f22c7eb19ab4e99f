"""An ensemble of heads in one run: the mean of the members' objectives."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.objectives.component import missing_tensor
from aplot_lightning.objectives.objective import Objective, ObjectiveResult
from aplot_lightning.transport import at_least_float32
from aplot_lightning.types import Pairs, Scores


class EnsembleObjective(Objective):
    """Applies the composed objective to each member's rewards and averages over the members.

    Formula:
        L = 1/K Σ_k L(member k's rewards), with L as in `Objective`; the gaps and margins of the result are
        those of the mean reward

    Args:
        link, margin, target, coupling, weighting, regularizers: as in `Objective`; they define each member's loss.

    Needs `member_rewards` (R, K) from the model, which a head with K members provides.

    When to use it: K heads with different initial weights on one backbone, trained in one run. Their disagreement marks
    responses whose reward is unreliable (when scoring: mean, minimum, or mean - variance).

    Source: reward-model ensembles (Coste et al., 2310.02743); heads on a shared backbone as GRM's ensemble baseline
    (2406.10216).

    Deviations: members share the backbone, the batches and their order; only the initial weights differ.

    Raises:
        ValueError: a component keeps state between steps, which each member would need for itself.
    """

    def _check_components(self) -> None:
        super()._check_components()
        for component in self.components:
            if next(component.buffers(), None) is not None:
                raise ValueError(
                    f"EnsembleObjective must be made of components without state, got {type(component).__name__} with "
                    f"{next(component.named_buffers())[0]!r}"
                )

    @property
    def tensors(self) -> dict[str, str]:
        return {**super().tensors, "member_rewards": type(self).__name__}

    def describe(self) -> str:
        return f"ensemble of heads: {super().describe()}"

    def forward(self, scores: Scores, pairs: Pairs) -> ObjectiveResult:
        """As `Objective.forward`, over member_rewards (R, K), K >= 1.

        Raises:
            ValueError: member_rewards has another shape.
            UserError: the model provides no member_rewards.
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
