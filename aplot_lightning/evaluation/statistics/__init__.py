"""Intervals and differences over prompts and seeds, corrections and correlations, in NumPy and SciPy's functions."""

from aplot_lightning.evaluation.statistics.holm import holm
from aplot_lightning.evaluation.statistics.prompts import (
    Interval,
    PairedDifference,
    bootstrap_interval,
    bootstrap_means,
    counted,
    paired_difference,
    percentiles,
    right,
    sign_flip_p,
)
from aplot_lightning.evaluation.statistics.ranks import rank_correlation
from aplot_lightning.evaluation.statistics.seeds import SeededMean, seeded_mean

__all__ = [
    "Interval",
    "PairedDifference",
    "SeededMean",
    "bootstrap_interval",
    "bootstrap_means",
    "counted",
    "holm",
    "paired_difference",
    "percentiles",
    "rank_correlation",
    "right",
    "seeded_mean",
    "sign_flip_p",
]
