"""What best-of-n gives and what it costs, from one pool of scored samples (WebGPT 2112.09332, 2210.10760)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n policy || the policy it samples from) = log n - (n - 1) / n, in nats.

    Exact where no two samples have the same reward; with ties, or a finite number of different responses, an upper
    bound (Beirami et al. 2401.01879).
    """
    return log(n) - (n - 1) / n


def best_of_n_means(proxy: ArrayLike, values: ArrayLike, sizes: Sequence[int]) -> Floats:
    """Mean values of the sample with the largest proxy among n, without bias, from a pool of N >= n samples.

    Averages over all subsets of n: with the pool sorted by proxy, the i-th (from 1) is the best of
    C(i - 1, n - 1) of the C(N, n) subsets. Samples of one proxy share the weights of their places, which is drawing
    lots among them.

    Args:
        proxy: (N,) what is maximised.
        values: (N,) or (N, k) what is measured: the proxy itself, the true reward, ...
        sizes: n, from 1 to N each.

    Returns:
        (sizes,) or (sizes, k) float64.

    Raises:
        ValueError: an n is out of range, or the lengths differ.
    """
    keys, measured = np.asarray(proxy, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if keys.ndim != 1 or measured.shape[:1] != keys.shape:
        raise ValueError(f"proxy and values must be equally long, not {keys.shape} and {measured.shape}")
    if not all(1 <= n <= keys.size for n in sizes):
        raise ValueError(f"sizes are {list(sizes)}: each must be from 1 to the {keys.size} samples")
    _, tier, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(tier, kind="stable")
    starts = np.cumsum(counts) - counts
    means = (np.add.reduceat(measured[order], starts, axis=0).T / counts).T
    ends = np.cumsum(counts)
    return np.stack([np.diff(_share_below(ends, keys.size, n), prepend=0.0) @ means for n in sizes])


def _share_below(places: NDArray[np.int64], total: int, n: int) -> Floats:
    """C(i, n) / C(N, n) for each place i: how many of the subsets of n lie wholly among the lowest i samples."""
    i = places.astype(np.float64)
    with np.errstate(invalid="ignore"):
        logs = gammaln(i + 1) - gammaln(np.maximum(i - n, 0) + 1) - (gammaln(total + 1) - gammaln(total - n + 1))
    return np.where(i >= n, np.exp(logs), 0.0)
