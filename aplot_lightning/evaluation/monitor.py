"""The metrics that may select a checkpoint or a config, by name.

Imports nothing heavy, so that commands can check a name at once.
"""

from __future__ import annotations

from typing import Literal

from aplot_lightning.errors import UserError

METRICS = (
    "accuracy",
    "log_loss",
    "ece",
    "hard_accuracy",
    "longer_chosen_accuracy",
    "shorter_chosen_accuracy",
    "length_correlation",
    "mean_gap",
    "auroc",
)
LOWER_IS_BETTER = ("log_loss", "ece")


def check_monitor(monitor: str) -> None:
    """Raises UserError for an unknown metric and for a test set: test sets select nothing (docs/method.md)."""
    stem, _, metric = monitor.rpartition("/")
    if not (stem == "validation" or stem.startswith("ood_validation/")):
        raise UserError(
            f"monitor: {monitor!r} may not select: test sets (id, ood) are only reported; use a metric of `validation` "
            "or of a set in data.ood_validation, such as validation/accuracy"
        )
    if metric not in METRICS:
        raise UserError(f"monitor: there is no metric {metric!r}; choose from {', '.join(METRICS)}")


def direction(monitor: str) -> Literal["minimize", "maximize"]:
    """Whether lower or higher values of a metric are better."""
    return "minimize" if monitor.rpartition("/")[2] in LOWER_IS_BETTER else "maximize"
