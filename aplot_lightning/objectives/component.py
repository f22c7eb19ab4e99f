"""The base classes of an objective's components, and the checks and errors that they share.

Each component states what it needs, so that training can plan its passes and reject a bad combination before it starts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from aplot_lightning.errors import UserError
from aplot_lightning.types import Scores

Columns: TypeAlias = Mapping[str, Tensor]  # the columns of n pairs, (n,) each; `types.Pairs` lists their names


class Component(nn.Module):
    """Base of all components: couplings, links, margins, targets, weightings and regularizers.

    Attributes:
        separable: True if the result for a pair depends on that pair only. The loss is then a plain weighted mean over
            pairs, and training needs one pass over the micro-batches.
        columns: the pair columns that the component requires.
        tensors: the named tensors of `Scores` that the component requires in addition to rewards and embeddings. A
            head or another option of the model provides them.
        linear_head: True if the formula holds only for rewards that are a linear function of the embeddings.
    """

    separable: bool = True
    columns: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    linear_head: bool = False

    def describe(self) -> str:
        """A short name for logs and tables; empty for a default that needs no mention."""
        return type(self).__name__

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Component:
        # Keeps the state of a component (a running mean, a queue) in float32: `module.to(torch.bfloat16)`, which
        # Lightning's bf16-true calls, would otherwise narrow it, and a running mean in bfloat16 stops moving.
        def keep_width(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrower = result.is_floating_point() and result.element_size() < tensor.element_size()
            return tensor.to(result.device) if narrower else result

        super()._apply(keep_width, recurse)
        return self


class Coupling(Component, ABC):
    """Base of all couplings: which chosen response is compared with which rejected response.

    Attributes:
        keeps_pairs: True if each gap belongs to one pair of the data, so that the pair's margin and weight apply to it.
    """

    keeps_pairs: bool = True

    @abstractmethod
    def forward(self, chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
        """Rewards of both sides of n pairs, (n,) each -> the gaps that the link sees, (n,)."""


class Link(Component, ABC):
    """Base of all links: a subclass defines the loss ℓ of one signed gap minus the margin.

    Formula:
        t ℓ(Δ - m) + (1 - t) ℓ(-Δ - m)

    With a soft target the margin asks for more on both sides; for t = 1 this is ℓ(Δ - m).
    """

    @abstractmethod
    def pointwise(self, z: Tensor) -> Tensor:
        """ℓ(z), elementwise: (n,) -> (n,)."""

    def forward(
        self, gaps: Tensor, margins: Tensor, targets: Tensor, chosen: Scores, rejected: Scores, columns: Columns
    ) -> Tensor:
        """The loss of each pair: gaps Δ (n,), margins m (n,), targets t (n,) in [0, 1] -> (n,).

        A link that needs more than the gap reads it from the scores of both sides or from the columns of the pairs.
        """
        return targets * self.pointwise(gaps - margins) + (1 - targets) * self.pointwise(-gaps - margins)


class Margin(Component, ABC):
    """Base of all margins: what the loss asks of a pair's gap beyond zero."""

    @abstractmethod
    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        """Scores of both sides of n pairs and the columns of the pairs -> m (n,), in the rewards' dtype.

        The margin carries no gradient unless the class has an option `detach` and it is False.
        """


class Target(Component, ABC):
    """Base of all targets: the probability that the chosen response is preferred."""

    @abstractmethod
    def forward(self, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        """Scores of both sides of n pairs and the columns -> t (n,) in [0, 1], in the rewards' dtype, no gradient."""


class Weighting(Component, ABC):
    """Base of all weightings: a factor for each pair's loss."""

    @abstractmethod
    def forward(self, losses: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        """The factors f of n pairs, (n,), without gradient; the loss is then Σ w f ℓ / Σ w.

        Args:
            losses: (n,), the link's losses ℓ, with their graph.
            weights: (n,), the weights w of the data.
            chosen: scores of the chosen responses, (n, ...).
            rejected: scores of the rejected responses, (n, ...).
            columns: the columns of the pairs, (n,) each.
        """


class Regularizer(Component, ABC):
    """Base of all regularizers: a term that is added to the loss of the pairs."""

    @abstractmethod
    def forward(self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        """The term to add, a scalar.

        Args:
            loss: scalar, the weighted mean of the pairs' losses, for terms that mix with it.
            weights: (n,), the weights of the data; a separable term is a mean with these weights.
            chosen: scores of the chosen responses, (n, ...).
            rejected: scores of the rejected responses, (n, ...).
            columns: the columns of the pairs, (n,) each.
        """


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w x / Σ w over pairs, (n,) and (n,) -> scalar; 0 if all weights are 0."""
    total = weights.sum()
    return (weights * values).sum() / torch.where(total > 0, total, 1)


def finite(name: str, value: float) -> float:
    """Returns the value. Raises ValueError, naming the argument, unless it is finite."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return value


def positive(name: str, value: float) -> float:
    """Returns the value. Raises ValueError, naming the argument, unless it is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return value


def not_negative(name: str, value: float) -> float:
    """Returns the value. Raises ValueError, naming the argument, unless it is finite and at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    return value


def missing_tensor(tensor: str, component: str) -> UserError:
    """The error for a tensor that `component` (a class name) needs and the model does not provide."""
    return UserError(
        f'{component} needs "{tensor}" from the model, which does not provide it: choose a model.head or option that '
        f"does (the file of {component} in conf/objective/ names it) or replace {component}"
    )


def missing_linear_head(component: str) -> UserError:
    """The error for a model without the linear head that `component` (a class name) needs."""
    return UserError(
        f"{component} needs a linear reward head, which the model does not have: leave model.head at null or replace "
        f"{component}"
    )


def missing_column(column: str, component: str) -> UserError:
    """The error for a pair column that `component` (a class name) needs and the data does not have."""
    return UserError(
        f'{component} needs the column "{column}", which the data does not have: '
        f'add "{column}" to the rows of data.train or replace {component}'
    )


def required_column(columns: Columns, column: str, component: str) -> Tensor:
    """The column (n,) of that name. Raises UserError if it is absent."""
    if column not in columns:
        raise missing_column(column, component)
    return columns[column]
