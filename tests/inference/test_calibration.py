from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression, minimize_scalar
from torchmetrics.functional.classification import binary_calibration_error

from aplot_lightning.errors import UserError
from aplot_lightning.inference.calibration import (
    fit_calibration,
    fit_isotonic,
    fit_temperature,
    pool_adjacent_violators,
)


def pairs(seed: int, count: int = 400, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Gaps that are `scale` times too large, written down with the winner first, and labels, some of them soft."""
    chance = np.random.default_rng(seed)
    gaps = chance.normal(size=count)
    wins = chance.uniform(size=count) < 1 / (1 + np.exp(-gaps))
    return scale * np.where(wins, gaps, -gaps), np.where(chance.uniform(size=count) < 0.2, 0.8, 1.0)


def loss(inverse: float, gaps: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean(targets * np.logaddexp(0, -gaps * inverse) + (1 - targets) * np.logaddexp(0, gaps * inverse)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.01, 3.0, 1000.0])
def test_the_temperature_is_scipys_minimum_of_the_log_loss(seed, scale):
    gaps, targets = pairs(seed, scale=scale)
    found = minimize_scalar(lambda x: loss(x / scale, gaps, targets), bounds=(0, 10), options={"xatol": 1e-10})
    assert scale / found.x == pytest.approx(fit_temperature(gaps, targets), rel=1e-5)


def test_the_temperature_mends_gaps_that_are_too_large():
    gaps, _ = pairs(0, count=20000)
    fit = fit_calibration(gaps, np.ones(len(gaps)), "temperature")
    assert fit.temperature == pytest.approx(3.0, rel=0.1)
    assert fit.log_loss_after < fit.log_loss_before
    assert fit.ece_after < 0.02 < fit.ece_before
    assert fit.log_loss_before == pytest.approx(loss(1, gaps, np.ones(len(gaps))), rel=1e-9)
    told = torch.sigmoid(torch.from_numpy(np.abs(gaps)))
    expected = binary_calibration_error(told, torch.from_numpy(gaps > 0).long(), n_bins=15)
    assert fit.ece_before == pytest.approx(float(expected), abs=1e-6)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=30))
def test_pooling_is_scipys_isotonic_regression(steps):
    values, weights = (np.array(column, dtype=float) for column in zip(*steps, strict=True))
    expected = isotonic_regression(values, weights=weights).x
    np.testing.assert_allclose(pool_adjacent_violators(values, weights), expected, atol=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.booleans())
def test_the_isotonic_curve_is_scipys_at_every_gap(seed, tied):
    gaps, targets = pairs(seed, count=60)
    gaps = np.round(gaps) if tied else gaps
    x, place, counts = np.unique(np.concatenate([gaps, -gaps]), return_inverse=True, return_counts=True)
    means = np.bincount(place, np.concatenate([targets, 1 - targets])) / counts
    expected = isotonic_regression(means, weights=counts).x
    corners, probabilities = fit_isotonic(gaps, targets)
    np.testing.assert_allclose(np.interp(x, corners, probabilities), expected, atol=1e-12)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_a_curve_is_monotone_and_the_same_seen_from_both_sides(method):
    fit = fit_calibration(*pairs(1), method)
    gaps = np.linspace(-12, 12, 101)
    curve = fit(gaps)
    assert (np.diff(curve) >= 0).all()
    np.testing.assert_allclose(curve + fit(-gaps), 1, atol=1e-9)
    assert fit(0.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("gaps", "message"),
    [([1.0, 2.0, 0.5], "all as the rewards say"), ([-1.0, -2.0, 0.5], "contradict"), ([0.0, 0.0], "contradict")],
)
def test_pairs_without_a_best_temperature_are_told(gaps, message):
    with pytest.raises(UserError, match=message):
        fit_temperature(np.array(gaps), np.ones(len(gaps)))
