"""The Beta link: a posterior over the pair's preference in place of one probability."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from aplot_lightning.objectives.links.base import Link
from aplot_lightning.objectives.options import not_negative, positive
from aplot_lightning.types import Scores

LIMIT = 10.0  # of |z|: beyond it the loss, which grows as exp(|z|), goes on along its tangent


class BetaLink(Link):
    """The preference of a pair is Beta(α, β): its mean comes from the gap, its confidence from the model.

    Formula:
        μ = σ(z), α = μ τ, β = (1 - μ) τ, with the confidence τ_i = (τ_i⁺ + τ_i⁻) / 2
        ℓ(z) = -[ψ(α) - ψ(α + β)] + λ KL(Beta(α, β) ‖ Beta(α₀, β₀))

    The first term is the expectation of -log of the preference. With a soft target t ℓ(μ) + (1 - t) ℓ(1 - μ), both
    sides with the same τ. At λ = 1 the free minimum is Beta(α₀ + 1, β₀).

    Args:
        weight: λ, at least 0. With 0 nothing holds α down, and confidence grows without bound.
        prior_alpha: α₀, above 0.
        prior_beta: β₀, above 0.

    When to use it: for a finite confidence beside each preference. The prior holds gaps down: at λ = 1 and with
    Beta(1, 1) a pair is best at μ = 2/3 and τ = 3, so give a smaller λ where gaps should spread.

    Source: ICRM (2602.08819): a conjugate Beta prior on Bradley–Terry, mean and confidence from two heads.

    Deviations: this loss is ours, written from what the paper says of its variational objective; its in-context
    demonstrations are not part of it. Ours are: τ as the mean of two responses' confidences, defaults (λ = 1, uniform
    prior), mixing for soft targets, the margin inside z, and the tangent beyond |z| = 10, without which exp(|z|)
    overflows. Inside float64, for the cancellation at large τ.
    """

    tensors = ("confidence",)

    def __init__(self, weight: float = 1.0, prior_alpha: float = 1.0, prior_beta: float = 1.0) -> None:
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.prior_alpha = positive("prior_alpha", prior_alpha)
        self.prior_beta = positive("prior_beta", prior_beta)

    def pointwise(self, z: Tensor, confidence: Tensor | None = None) -> Tensor:
        """ℓ(z) under the confidence τ (n,), by default that of the free minimum at λ = 1: (n,) -> (n,)."""
        if confidence is None:
            confidence = torch.full_like(z, 1 + self.prior_alpha + self.prior_beta)
        wide, tau = z.double(), confidence.double()
        near = wide.clamp(-LIMIT, LIMIT)
        alpha, beta = torch.sigmoid(near) * tau, torch.sigmoid(-near) * tau
        surprise = torch.digamma(tau) - torch.digamma(alpha)
        value = surprise + self.weight * self._divergence(alpha, beta, tau)
        tangent = self._slope(alpha, beta, tau) * (wide - near)
        return (value + tangent).to(z.dtype)

    def _divergence(self, alpha: Tensor, beta: Tensor, tau: Tensor) -> Tensor:
        """KL(Beta(α, β) ‖ Beta(α₀, β₀))."""
        a, b = self.prior_alpha, self.prior_beta
        prior = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
        own = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(tau)
        pull = (alpha - a) * torch.digamma(alpha) + (beta - b) * torch.digamma(beta)
        return prior - own + pull + (a + b - tau) * torch.digamma(tau)

    def _slope(self, alpha: Tensor, beta: Tensor, tau: Tensor) -> Tensor:
        """dℓ/dz at fixed τ, in closed form: dα/dz = α β / τ = -dβ/dz."""
        first, second = torch.polygamma(1, alpha), torch.polygamma(1, beta)
        pull = (alpha - self.prior_alpha) * first - (beta - self.prior_beta) * second
        return alpha * beta / tau * (self.weight * pull - first)

    def forward(
        self,
        gaps: Tensor,
        margins: Tensor,
        targets: Tensor,
        chosen: Scores,
        rejected: Scores,
        columns: Mapping[str, Tensor],
    ) -> Tensor:
        confidence = (chosen.tensors["confidence"] + rejected.tensors["confidence"]) / 2
        won, lost = self.pointwise(gaps - margins, confidence), self.pointwise(-gaps - margins, confidence)
        return targets * won + (1 - targets) * lost

    def describe(self) -> str:
        return f"beta (weight {self.weight:g}, prior {self.prior_alpha:g}, {self.prior_beta:g})"
