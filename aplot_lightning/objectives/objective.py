"""The training objective: a link of gap, margin and target, averaged over the pairs of a whole optimizer batch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aplot_lightning.errors import UserError
from aplot_lightning.objectives.component import (
    Component,
    Coupling,
    Link,
    Margin,
    Regularizer,
    Target,
    Weighting,
    missing_column,
    missing_linear_head,
    missing_tensor,
    weighted_mean,
)
from aplot_lightning.objectives.couplings import Identity
from aplot_lightning.objectives.links import Logistic
from aplot_lightning.objectives.margins import ConstantMargin, NoMargin
from aplot_lightning.objectives.targets import ColumnTarget
from aplot_lightning.transport import at_least_float32, without_autocast
from aplot_lightning.types import Pairs, Scores


@dataclass(frozen=True)
class ObjectiveResult:
    """The result of an objective for n pairs.

    Attributes:
        loss: scalar, with gradient.
        gaps: (n,), chosen minus rejected reward, with gradient.
        margins: (n,), without gradient unless the margin has detach=False.
    """

    loss: Tensor
    gaps: Tensor
    margins: Tensor


class Objective(nn.Module):
    """The training objective, composed of a link, a margin, a target, a coupling, a weighting and regularizers.

    Formula:
        L = Σ_i w_i f_i ℓ(Δ_i, m_i, t_i) / Σ_i w_i + Σ_k R_k, with gap Δ_i = r_i⁺ - r_i⁻

    Args:
        link: ℓ, the pairwise loss; logistic by default.
        margin: m, what the loss asks of the gap beyond zero; none by default.
        target: t, the probability that chosen is preferred; by default the data's `target` column, or 1 without it.
        coupling: which chosen response is compared with which rejected one; by default those of one pair.
        weighting: f, a factor for each pair's loss; 1 by default.
        regularizers: R, terms that are added to the loss; none by default.

    When to use it: always; without arguments it is Bradley–Terry. w is the data's `weight` column, or 1 without it.

    Source: Bradley–Terry reward modeling (InstructGPT, 2203.02155, equation 1) with Llama 2's margin (2307.09288,
    equation 2).

    Deviations: with a soft target the margin asks for more on both sides (see `Link`).

    Raises:
        ValueError: a coupling that breaks pairs up is combined with a margin or weighting that belongs to a pair.
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
        super().__init__()
        self.link: Link = Logistic() if link is None else link
        self.margin: Margin = NoMargin() if margin is None else margin
        self.target: Target = ColumnTarget() if target is None else target
        self.coupling: Coupling = Identity() if coupling is None else coupling
        self.weighting = weighting
        self.regularizers = nn.ModuleList(regularizers or [])
        self._check_components()

    def _check_components(self) -> None:
        """Raises ValueError if the components do not fit together."""
        if self.coupling.keeps_pairs:
            return
        name = type(self.coupling).__name__
        if not isinstance(self.margin, NoMargin | ConstantMargin):
            raise ValueError(f"{name} breaks pairs up: it must be used with NoMargin or ConstantMargin")
        if self.weighting is not None:
            raise ValueError(f"{name} breaks pairs up: it must be used without a weighting")
        for component in (self.link, self.target):
            if component.columns or component.tensors:
                raise ValueError(f"{name} breaks pairs up: it must be used without {type(component).__name__}")

    @property
    def components(self) -> tuple[Component, ...]:
        weighting = () if self.weighting is None else (self.weighting,)
        return (self.coupling, self.link, self.margin, self.target, *weighting, *self.regularizers)

    @property
    def separable(self) -> bool:
        """True if each pair's loss depends on that pair only; L is then a weighted mean over any split of the batch."""
        return all(component.separable for component in self.components)

    @property
    def columns(self) -> dict[str, str]:
        """The required pair columns, each with the name of the component that needs it."""
        return {column: type(component).__name__ for component in self.components for column in component.columns}

    @property
    def tensors(self) -> dict[str, str]:
        """The named tensors of Scores that the model must provide, each with the component that needs it."""
        return {tensor: type(component).__name__ for component in self.components for tensor in component.tensors}

    def require(
        self, columns: Collection[str], tensors: Collection[str] | None = None, linear_head: bool | None = None
    ) -> None:
        """Raises UserError unless the data and the model provide everything that the components need.

        Args:
            columns: the pair columns that the training data has.
            tensors: the names of the model's Scores; None to skip the check.
            linear_head: whether the model's rewards are linear in its embeddings; None to skip the check.
        """
        for column, name in self.columns.items():
            if column not in columns:
                raise missing_column(column, name)
        for tensor, name in self.tensors.items():
            if tensors is not None and tensor not in tensors:
                raise missing_tensor(tensor, name)
        if linear_head is False:
            for component in self.components:
                if component.linear_head:
                    raise missing_linear_head(type(component).__name__)
        if not self.coupling.keeps_pairs and "target" in columns:
            name = type(self.coupling).__name__
            raise UserError(f'{name} breaks pairs up: it cannot use the column "target"; remove it from data.train')

    def describe(self) -> str:
        """A short name for logs and tables, such as "logistic, no margin"."""
        return ", ".join(filter(None, (component.describe() for component in self.components)))

    def forward(self, scores: Scores, pairs: Pairs) -> ObjectiveResult:
        """The loss of n pairs over R scored responses, computed in float32 or float64 whatever the autocast around it.

        Args:
            scores: rewards (R,), embeddings (R, d), and the other tensors that a component requires.
            pairs: n pairs over these responses with their columns (n,). With n = 0, or if all weights are 0, the loss
                is 0 and still connected to the scores.

        Raises:
            ValueError: rewards, weights, margins or targets have another shape and would broadcast.
            UserError: a required column is absent.
        """
        if scores.rewards.dim() != 1:
            raise ValueError(f"rewards must have shape (R,), one for each response, got {tuple(scores.rewards.shape)}")
        with without_autocast(scores.rewards):
            chosen, rejected = scores.map(at_least_float32).pairs(pairs)
            columns = pairs.columns
            gaps = chosen.rewards - rejected.rewards
            margins = _per_pair("margin", self.margin(chosen, rejected, columns), gaps)
            targets = _per_pair("target", self.target(chosen, rejected, columns), gaps)
            weights = torch.ones_like(gaps)
            if "weight" in columns and self.coupling.keeps_pairs:
                weights = _per_pair("weight", columns["weight"].to(gaps), gaps)
            coupled = self.coupling(chosen.rewards, rejected.rewards)
            losses = self.link(coupled, margins, targets, chosen, rejected, columns)
            if self.weighting is not None:
                losses = losses * self.weighting(losses, weights, chosen, rejected, columns)
            loss = weighted_mean(losses, weights)
            loss = loss + sum(term(loss, weights, chosen, rejected, columns) for term in self.regularizers)
        return ObjectiveResult(loss, gaps, margins)


def _per_pair(name: str, values: Tensor, gaps: Tensor) -> Tensor:
    if values.shape != gaps.shape:
        raise ValueError(f"{name} must have shape {tuple(gaps.shape)}, one for each pair, got {tuple(values.shape)}")
    return values
