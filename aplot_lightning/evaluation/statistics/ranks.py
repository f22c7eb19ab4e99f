"""Spearman's rank correlation in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; (n,) and (n,) -> [-1, 1].

    None with fewer than two values, or where one side is constant.
    """
    first, second = _mean_ranks(np.asarray(a)), _mean_ranks(np.asarray(b))
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _mean_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, member, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[member]
