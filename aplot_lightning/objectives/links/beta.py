"""The Beta link: a distribution over the pair's preference in place of one probability."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aplot_lightning.objectives.component import Columns, Link, not_negative, positive
from aplot_lightning.types import Scores

LIMIT = 10.0  # beyond |z| = 10 the loss, which grows as exp(|z|), continues along its tangent


class BetaLink(Link):
    """Models the preference of a pair as Beta(α, β), with the mean from the gap and the confidence from the model.

    Formula:
        μ = σ(z), α = μ τ, β = (1 - μ) τ, with the confidence τ_i = (τ_i⁺ + τ_i⁻) / 2
        ℓ(z) = -[ψ(α) - ψ(α + β)] + λ KL(Beta(α, β) ‖ Beta(α₀, β₀))

    The first term is the expectation of -log of the preference. A soft target gives t ℓ(μ) + (1 - t) ℓ(1 - μ), with the
    same τ on both sides. At λ = 1 the unconstrained minimum is Beta(α₀ + 1, β₀).

    Args:
        weight: λ, at least 0. With 0 nothing limits α, and the confidence grows without bound.
        prior_alpha: α₀, above 0.
        prior_beta: β₀, above 0.

    When to use it: to get a finite confidence with each preference. The prior keeps gaps small: at λ = 1 and with
    Beta(1, 1) the optimum of a pair is μ = 2/3 and τ = 3, so choose a smaller λ if gaps should spread.

    Source: ICRM (2602.08819): a conjugate Beta prior on Bradley–Terry, mean and confidence from two heads.

    Deviations: this loss is ours, written from the paper's description of its variational objective, without its
    in-context demonstrations. Our choices: τ as the mean of two responses' confidences, the defaults (λ = 1, uniform
    prior), the mixture for soft targets, the margin inside z, and the tangent beyond |z| = 10, without which exp(|z|)
    overflows. Computed in float64 because of cancellation at large τ.
    """

    tensors = ("confidence",)

    def __init__(self, weight: float = 1.0, prior_alpha: float = 1.0, prior_beta: float = 1.0) -> None:
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.prior_alpha = positive("prior_alpha", prior_alpha)
        self.prior_beta = positive("prior_beta", prior_beta)

    def pointwise(self, z: Tensor, confidence: Tensor | None = None) -> Tensor:
        """ℓ(z) under the confidence τ (n,), by default that of the unconstrained minimum at λ = 1: (n,) -> (n,)."""
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
        self, gaps: Tensor, margins: Tensor, targets: Tensor, chosen: Scores, rejected: Scores, columns: Columns
    ) -> Tensor:
        confidence = (chosen.tensors["confidence"] + rejected.tensors["confidence"]) / 2
        won, lost = self.pointwise(gaps - margins, confidence), self.pointwise(-gaps - margins, confidence)
        return targets * won + (1 - targets) * lost

    def describe(self) -> str:
        return f"beta (weight {self.weight:g}, prior {self.prior_alpha:g}, {self.prior_beta:g})"
