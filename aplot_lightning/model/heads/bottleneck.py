"""InfoRM's head: the reward sees the embedding through a noisy, narrow channel."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aplot_lightning.model.heads.head import Head, check_count, linear_layer

LOG_VARIANCE_LIMIT = 20.0  # exp of more overflows in float32; KL keeps it far from here


class Bottleneck(Head):
    """A Gaussian code of the embedding, and a linear reward of the code.

    Formula:
        q(s | h) = N(μ, diag σ²) with μ, log σ² linear in h
        s = μ + σ ε, ε ~ N(0, I), in training mode;  s = μ in evaluation mode
        r = w · s (+ b);  kl = KL(q ‖ N(0, I)) = ½ Σ_j (μ_j² + σ_j² - 1 - log σ_j²)

    Gives: rewards (R,), kl (R,), in nats.

    Args:
        dimension: size of the code s, at least 1.

    When to use it: with the information-bottleneck regularizer, which adds the KL term to the loss
    (conf/objective/inform.yaml).

    Source: InfoRM (2402.09345), section 3 and its variational bound.

    Deviations: log σ² is kept within ±20. The noise ε comes from torch's global stream, as dropout does: it is repeated
    in both passes of an exact step and in a resumed run, and differs between ways of cutting a batch.
    """

    kind: ClassVar[str] = "bottleneck"
    options: ClassVar[tuple[str, ...]] = ("dimension",)
    tensor_names: ClassVar[frozenset[str]] = frozenset({"rewards", "kl"})

    def __init__(self, dimension: int = 128) -> None:
        super().__init__()
        self.dimension = check_count("dimension", dimension, 1)

    def make_layers(self) -> None:
        self.code = linear_layer(self.in_features, 2 * self.dimension, True)
        self.reward = linear_layer(self.dimension, 1, self.has_bias)

    def read(self, embeddings: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.code(embeddings).chunk(2, -1)
        log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        code = mean
        if self.training:
            code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return {"rewards": self.reward(code).squeeze(-1), "kl": kl}
