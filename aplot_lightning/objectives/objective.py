"""One objective: a link of gap minus margin and target, weighted over the pairs of a whole optimizer batch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aplot_lightning.errors import UserError
from aplot_lightning.objectives.couplings import Coupling, Identity
from aplot_lightning.objectives.links import Link, Logistic
from aplot_lightning.objectives.margins import ConstantMargin, Margin, NoMargin
from aplot_lightning.objectives.part import Part, missing_column, missing_linear_head, missing_tensor
from aplot_lightning.objectives.regularizers import Regularizer, weighted_mean
from aplot_lightning.objectives.targets import ColumnTarget, Target
from aplot_lightning.objectives.weightings import Weighting
from aplot_lightning.transport import at_least_float32, without_autocast
from aplot_lightning.types import Pairs, Scores


@dataclass(frozen=True)
class ObjectiveResult:
    """What an objective gives for n pairs.

    Attributes:
        loss: scalar, with gradient.
        gaps: (n,), chosen minus rejected reward, with gradient.
        margins: (n,), without gradient unless the margin was asked for one.
    """

    loss: Tensor
    gaps: Tensor
    margins: Tensor


class Objective(nn.Module):
    """The training objective, put together from parts.

    Formula:
        L = Σ_i w_i f_i ℓ(Δ_i, m_i, t_i) / Σ_i w_i + Σ_k R_k, with gap Δ_i = r_i⁺ - r_i⁻

    Args:
        link: ℓ, the pairwise loss; logistic by default.
        margin: m, what is asked of the gap beyond zero; none by default.
        target: t, the probability that chosen is preferred; by default the data's `target`, or 1 without one.
        coupling: which chosen meets which rejected inside the link; by default those of one pair.
        weighting: f, a factor for each pair; 1 by default.
        regularizers: R, terms that are added; none by default.

    When to use it: always; without arguments it is Bradley–Terry. w is the data's `weight` column, or 1.

    Source: Bradley–Terry reward modelling (InstructGPT, 2203.02155, equation 1) with Llama 2's margin (2307.09288,
    equation 2).

    Deviations: with a soft target the margin asks for more on both sides (see `Link`).

    Raises:
        ValueError: a coupling that breaks pairs up, with a margin or weighting that belongs to a pair.
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
        self._check_coupling()

    def _check_coupling(self) -> None:
        if self.coupling.keeps_pairs:
            return
        name = type(self.coupling).__name__
        if not isinstance(self.margin, NoMargin | ConstantMargin):
            raise ValueError(f"{name} breaks pairs up: it must be used with NoMargin or ConstantMargin")
        if self.weighting is not None:
            raise ValueError(f"{name} breaks pairs up: it must be used without a weighting")
        for part in (self.link, self.target):
            if part.columns or part.tensors:
                raise ValueError(f"{name} breaks pairs up: it must be used without {type(part).__name__}")

    @property
    def parts(self) -> tuple[Part, ...]:
        weighting = () if self.weighting is None else (self.weighting,)
        return (self.coupling, self.link, self.margin, self.target, *weighting, *self.regularizers)

    @property
    def separable(self) -> bool:
        """Whether each pair's loss depends on that pair alone; L is then a weighted mean over any split of it."""
        return all(part.separable for part in self.parts)

    @property
    def columns(self) -> dict[str, str]:
        """The pair columns that cannot be done without, and the part that asks for each."""
        return {column: type(part).__name__ for part in self.parts for column in part.columns}

    @property
    def tensors(self) -> dict[str, str]:
        """The named tensors of Scores that the model must give, and the part that asks for each."""
        return {tensor: type(part).__name__ for part in self.parts for tensor in part.tensors}

    def require(
        self, columns: Collection[str], tensors: Collection[str] | None = None, linear_head: bool | None = None
    ) -> None:
        """Raises UserError unless data and model give everything that is needed.

        Args:
            columns: the pair columns that the training data has.
            tensors: the names of the model's Scores; None to leave them unchecked.
            linear_head: whether the model's rewards are linear in its embeddings; None to leave it unchecked.
        """
        for column, part in self.columns.items():
            if column not in columns:
                raise missing_column(column, part)
        for tensor, part in self.tensors.items():
            if tensors is not None and tensor not in tensors:
                raise missing_tensor(tensor, part)
        if linear_head is False:
            for asking in self.parts:
                if asking.linear_head:
                    raise missing_linear_head(type(asking).__name__)
        if not self.coupling.keeps_pairs and "target" in columns:
            name = type(self.coupling).__name__
            raise UserError(f'{name} breaks pairs up: it cannot use the column "target"; take it out of data.train')

    def describe(self) -> str:
        """A short name for logs and tables, such as "logistic, no margin"."""
        return ", ".join(filter(None, (part.describe() for part in self.parts)))

    def forward(self, scores: Scores, pairs: Pairs) -> ObjectiveResult:
        """The loss of the n pairs over R scored responses, in float32 or better whatever the precision around it.

        Args:
            scores: rewards (R,), embeddings (R, d), and whatever else a part asks for.
            pairs: n pairs over these responses with their columns (n,). With n = 0, or weights that are all 0, the
                loss is 0 and still hangs on the scores.

        Raises:
            ValueError: rewards, weights, margins or targets of another shape, which would otherwise broadcast.
            UserError: a column that a part needs is absent.
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
