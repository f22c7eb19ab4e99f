"""Two heads on one embedding: the reward, and a positive number that says how sure it is."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn

from aplot_lightning.model.heads.head import Head, linear_layer


class WithPositive(Head):
    """A linear reward beside a positive second output: softplus of a linear layer, plus a floor."""

    options: ClassVar[tuple[str, ...]] = ("floor",)
    second: ClassVar[str]  # the name of the second output

    def __init__(self, floor: float) -> None:
        super().__init__()
        if not (math.isfinite(floor) and floor > 0):
            raise ValueError(f"floor must be greater than 0 and finite, got {floor}")
        self.floor = float(floor)

    def make_layers(self) -> None:
        self.reward = linear_layer(self.in_features, 1, self.has_bias)
        self.positive = linear_layer(self.in_features, 1, True)

    def read(self, embeddings: Tensor) -> dict[str, Tensor]:
        positive = nn.functional.softplus(self.positive(embeddings)) + self.floor
        return {"rewards": self.reward(embeddings).squeeze(-1), self.second: positive.squeeze(-1)}


class WithVariance(WithPositive):
    """A linear reward and its variance.

    Formula:
        r = w · h (+ b);  v = softplus(u · h + c) + floor

    Gives: rewards (R,), variance (R,) > 0.

    Args:
        floor: the least variance, greater than 0.

    When to use it: with a link that reads a predicted variance (Thurstone, fidelity).

    Source: a Gaussian utility for each response, as in DiNa-LRM (2602.11146).

    Deviations: the form of the variance (softplus and floor) is ours; a fresh head starts near v = log 2.
    """

    kind: ClassVar[str] = "with_variance"
    tensor_names: ClassVar[frozenset[str]] = frozenset({"rewards", "variance"})
    second: ClassVar[str] = "variance"

    def __init__(self, floor: float = 1e-4) -> None:
        super().__init__(floor)


class WithConfidence(WithPositive):
    """A linear reward and a positive confidence.

    Formula:
        r = w · h (+ b);  τ = softplus(u · h + c) + floor

    Gives: rewards (R,), confidence (R,) > 0.

    Args:
        floor: the least confidence, greater than 0; the Beta distribution's parameters are multiples of it.

    When to use it: with the Beta link.

    Source: ICRM (2602.08819).

    Deviations: the form of the confidence (softplus and floor) is ours.
    """

    kind: ClassVar[str] = "with_confidence"
    tensor_names: ClassVar[frozenset[str]] = frozenset({"rewards", "confidence"})
    second: ClassVar[str] = "confidence"

    def __init__(self, floor: float = 1e-2) -> None:
        super().__init__(floor)
