"""The checks that parts make of the numbers they are built with."""

from __future__ import annotations

import math


def positive(name: str, value: float) -> float:
    """The value; ValueError naming the argument unless it is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return value


def not_negative(name: str, value: float) -> float:
    """The value; ValueError naming the argument unless it is finite and at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    return value
