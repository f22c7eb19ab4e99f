"""MORE: weights for the sources such that no source's gradient is outvoted by the others."""

from __future__ import annotations

import torch
from torch import Tensor

from aplot_lightning.errors import NotFiniteError
from aplot_lightning.objectives.component import Columns, Weighting, required_column
from aplot_lightning.types import Scores

TIE = 1e-6  # its square is added to the squared norms, which selects the most even of several minimizers


class MinNorm(Weighting):
    """Weights the sources by the convex combination of their gradients that has the smallest norm.

    Formula:
        L_k = Σ_{i in k} w_i ℓ_i / W_k with W_k = Σ_{i in k} w_i, the mean loss of source k's pairs
        g_k = Σ_r (∂L_k/∂r) h_r over both sides of the batch's pairs, the gradient of a linear head's weights
        λ = argmin ‖Σ_k λ_k g_k / ‖g_k‖‖² over the simplex
        f_i = K λ_k Σ_j w_j / W_k for a pair of source k, which makes the loss K Σ_k λ_k L_k

    Needs the column `source` ((n,) int64) and a linear head, for which g_k is exact without a backward pass through the
    model. The head's bias is ignored, because a shift of all rewards changes no pair's loss.

    When to use it: preference data from several sources that disagree, where a plain mixture follows the largest
    one. Sources that are absent from an optimizer batch, or have no weight in it, are left out, and K counts the
    others. Set `data.sources_in_every_batch: true` to draw every source into every batch, as the method intends. With
    one source every factor is 1.

    Source: MORE (2312.07401), its min-norm problem with normalized gradients; MGDA (Sener and Koltun 2018, 1810.04650).

    Deviations: solved exactly (non-negative least squares in float64) over all gathered pairs; the release iterates
    from a random start on one pair per source and rank. Tied minimizers (parallel gradients) share equally. A source
    whose gradient is exactly 0 has no direction: its λ is 0 and K does not count it; if all are 0, λ is 1/K.
    """

    separable = False
    columns = ("source",)
    linear_head = True

    def forward(self, losses: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: Columns) -> Tensor:
        """As `Weighting.forward`. Raises ValueError if gradients are disabled, because the losses' graph is needed."""
        source = required_column(columns, "source", "MinNorm")
        if len(losses) == 0:
            return torch.ones_like(losses)
        masks = [source == code for code in source.unique()]
        present = [mask for mask in masks if (weights * mask).sum() > 0]
        if len(present) < 2:
            return torch.ones_like(losses)
        if not losses.requires_grad:
            raise ValueError("MinNorm reads gradients: the objective must be called with gradients enabled")
        shares = [weights * mask / (weights * mask).sum() for mask in present]
        gradients = torch.stack([head_gradient((share * losses).sum(), chosen, rejected) for share in shares])
        lambdas, counted = min_norm_weights(gradients)
        factors = torch.zeros_like(losses)
        for value, mask in zip(lambdas, present, strict=True):
            factors += counted * value * weights.sum() / (weights * mask).sum() * mask
        return factors.detach()

    def describe(self) -> str:
        return "min-norm weighting over sources"


def head_gradient(loss: Tensor, chosen: Scores, rejected: Scores) -> Tensor:
    """The gradient of a loss in the weights of a linear head, with fixed embeddings: scalar -> (d,) float64."""
    rewards = (chosen.rewards, rejected.rewards)
    slopes = torch.autograd.grad(loss, rewards, retain_graph=True, allow_unused=True)
    total = chosen.embeddings.new_zeros(chosen.embeddings.shape[1], dtype=torch.float64)
    for slope, side in zip(slopes, (chosen, rejected), strict=True):
        if slope is not None:
            total += slope.double() @ side.embeddings.detach().double()
    return total


def min_norm_weights(gradients: Tensor) -> tuple[list[float], int]:
    """The simplex weights of the combination of normalized gradients with the smallest norm, solved exactly.

    Let the rows of G be normalized. The minimizer over x >= 0 of ‖Gᵀ x‖² + (1 - Σ x)² is a multiple of λ: for x = s λ
    the value is s² ‖Gᵀ λ‖² + (1 - s)², and for any s > 0 the best λ is that of the smallest norm. This is a
    non-negative least-squares problem, which an active-set method solves in finitely many steps (Lawson and Hanson
    1974).

    Args:
        gradients: (K, d), K >= 1.

    Returns:
        λ, K numbers, and the number of gradients that are not 0. A gradient of 0 gets λ 0; if all are 0, λ is 1/K and
        all are counted.

    Raises:
        NotFiniteError: a gradient contains NaN or infinite values.
    """
    import numpy as np
    from scipy.optimize import nnls

    matrix = gradients.detach().double().cpu().numpy()
    if not np.isfinite(matrix).all():
        raise NotFiniteError("the gradients of MinNorm's sources must be finite, got NaN or infinite values")
    largest = np.abs(matrix).max(axis=1, keepdims=True)  # scaled first, because squares of tiny gradients underflow
    used = np.flatnonzero(largest[:, 0] > 0)
    count = len(matrix)
    if len(used) == 0:
        return [1 / count] * count, count
    unit = matrix[used] / largest[used]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    # QR preserves norms and inner products and reduces the problem to the number of sources.
    stack = np.concatenate([np.linalg.qr(unit.T, mode="r"), TIE * np.eye(len(used)), np.ones((1, len(used)))])
    solution, _ = nnls(stack, np.concatenate([np.zeros(len(stack) - 1), [1.0]]))
    lambdas = np.zeros(count)
    lambdas[used] = solution / solution.sum()
    return lambdas.tolist(), len(used)
