"""Holm's correction for several tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: the chance of even one wrong rejection among all of them is held, however they depend.

    The k-th smallest of m is multiplied by m - k + 1, is never below the ones before it, and at most 1 (Holm 1979, "A
    simple sequentially rejective multiple test procedure"). Adjusted values stand in the order given.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()
