"""From a gap of two rewards to the probability that the first response is preferred, fitted on pairs that are known.

A Bradley-Terry model says σ(gap); trained for long, or with margins, it is too sure of itself. One number mends that
(temperature scaling, Guo et al. 1706.04599, on gaps in place of logits), or any monotone curve (isotonic regression,
Zadrozny and Elkan 2002).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aplot_lightning.errors import UserError

Method = Literal["temperature", "isotonic"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """A fitted curve from gaps to probabilities, with P(-gap) = 1 - P(gap), and what it did to the data of the fit.

    Attributes:
        method: ``temperature`` or ``isotonic``.
        temperature: T of σ(gap / T); None for isotonic.
        gaps: rising, where the isotonic curve has its corners; it is straight between them and level outside. Empty for
            a temperature.
        probabilities: the curve at these gaps.
        pairs: that it was fitted on.
        log_loss_before, log_loss_after: mean of -t log p - (1 - t) log(1 - p), with σ(gap) and with the curve.
        ece_before, ece_after: expected calibration error over 15 equal bins, as `metrics.json` has it; None where no
            pair is decided.
    """

    method: Method
    temperature: float | None
    gaps: list[float]
    probabilities: list[float]
    pairs: int
    log_loss_before: float
    log_loss_after: float
    ece_before: float | None
    ece_after: float | None

    def __call__(self, gap: ArrayLike) -> Floats:
        """P(the first is preferred), of the gaps' shape."""
        values = np.asarray(gap, dtype=np.float64)
        if self.temperature is not None:
            return sigmoid(values / self.temperature)
        return np.interp(values, self.gaps, self.probabilities)

    def to_json(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


def fit_calibration(gaps: ArrayLike, targets: ArrayLike, method: Method) -> Calibration:
    """Fits one of the two curves.

    Args:
        gaps: (n,) chosen minus rejected rewards.
        targets: (n,) in [0, 1], 1 where chosen is preferred for sure.
        method: which one.

    Raises:
        UserError: the pairs do not determine a temperature (see `fit_temperature`).
    """
    gap, target = np.asarray(gaps, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    temperature = fit_temperature(gap, target) if method == "temperature" else None
    corners = ([], []) if method == "temperature" else fit_isotonic(gap, target)
    curve = Calibration(method, temperature, *corners, len(gap), 0.0, 0.0, None, None)
    plain = sigmoid
    return Calibration(
        method,
        temperature,
        *corners,
        len(gap),
        log_loss(plain(gap), target),
        log_loss(curve(gap), target),
        calibration_error(plain(np.abs(gap)), gap, target),
        calibration_error(curve(np.abs(gap)), gap, target),
    )


def fit_temperature(gaps: Floats, targets: Floats) -> float:
    """T that minimises the log loss of σ(gap / T).

    The loss is convex in 1/T; its minimum is where the mean of gap (σ(gap / T) - t) is 0.

    Raises:
        UserError: it has no minimum, since every pair is right or most of the gaps are on the wrong side.
    """

    def slope(inverse: float) -> float:
        return float(np.mean(gaps * (sigmoid(gaps * inverse) - targets)))

    if slope(0.0) >= 0:
        raise UserError("its pairs contradict the rewards, so no temperature makes probabilities of them")
    if not ((gaps > 0) & (targets < 1) | (gaps < 0) & (targets > 0)).any():
        raise UserError("its pairs are all as the rewards say, so no temperature is the best: give more pairs")
    low, high = 0.0, 1 / float(np.abs(gaps).max())
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def fit_isotonic(gaps: Floats, targets: Floats) -> tuple[list[float], list[float]]:
    """The monotone curve of least squares through the pairs seen from both sides, (gap, t) and (-gap, 1 - t).

    Returns:
        The corners: gaps and probabilities, both rising.
    """
    x, place = np.unique(np.concatenate([gaps, -gaps]), return_inverse=True)
    weights = np.bincount(place).astype(np.float64)
    means = np.bincount(place, np.concatenate([targets, 1 - targets])) / weights
    y = pool_adjacent_violators(means, weights)
    corner = np.ones(len(y), dtype=bool)
    corner[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])
    return x[corner].tolist(), y[corner].tolist()


def pool_adjacent_violators(values: Floats, weights: Floats) -> Floats:
    """The rising sequence with the least weighted squared distance from `values`, (n,)."""
    means: list[float] = []
    sums: list[float] = []
    counts: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, count = value, weight, 1
        while means and means[-1] >= mean:
            above = sums.pop()
            mean = (means.pop() * above + mean * total) / (above + total)
            total += above
            count += counts.pop()
        means.append(mean)
        sums.append(total)
        counts.append(count)
    return np.repeat(np.asarray(means), counts)


def sigmoid(values: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(values), dtype=np.float64)


def log_loss(probabilities: Floats, targets: Floats) -> float:
    """Mean of -t log p - (1 - t) log(1 - p), infinite where something happened that has probability 0."""
    from scipy.special import xlog1py, xlogy

    return float(-np.mean(xlogy(targets, probabilities) + xlog1py(1 - targets, -probabilities)))


def calibration_error(confidence: Floats, gaps: Floats, targets: Floats) -> float | None:
    """How far the confidence in the side with the larger reward is from how often it is right.

    Args:
        confidence: (n,) probability of that side.
        gaps: (n,); at 0 no side is right.
        targets: (n,); pairs of 0.5 are left out.
    """
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    from aplot_lightning.evaluation.metrics import CALIBRATION_BINS

    decided = targets != 0.5
    if not decided.any():
        return None
    right = (gaps * (targets - 0.5) > 0)[decided]
    told = torch.from_numpy(confidence[decided])
    return float(binary_calibration_error(told, torch.from_numpy(right).long(), n_bins=CALIBRATION_BINS))


def calibration_path(output: Path) -> Path:
    """``scored.calibration.json`` beside ``scored.jsonl`` or ``scored.jsonl.gz``."""
    return output.with_name(f"{Path(output.name.removesuffix('.gz')).stem}.calibration.json")


def as_file(calibration: Calibration) -> bytes:
    return (json.dumps(calibration.to_json(), indent=2) + "\n").encode()


def target_of(content: Any) -> float:
    """The label of a pair row: its ``target`` where that is a number in [0, 1], else 1."""
    target = content.get("target")
    sound = isinstance(target, int | float) and not isinstance(target, bool) and 0 <= target <= 1
    return float(target) if sound else 1.0


def fit_on_pairs(known: Sequence[tuple[float, float]], method: Method, given: str) -> Calibration:
    """Fits on (gap, target) of a file. Raises UserError where they are too few or determine nothing."""
    if len(known) < 2:
        raise UserError(f"--calibrate: {given} holds {len(known)} pairs that can be scored: give a file of many")
    gaps, targets = np.asarray(known).T
    try:
        return fit_calibration(gaps, targets, method)
    except UserError as error:
        raise UserError(f"--calibrate: {given}: {error}; or take --calibration isotonic") from error
