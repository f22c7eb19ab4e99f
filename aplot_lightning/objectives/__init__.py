"""From the scores of a whole optimizer batch to a loss: one objective is a link, a margin and a target.

Every part is a small class that YAML names by its class path, for example `aplot_lightning.objectives.TransportMargin`.
"""

from __future__ import annotations

from aplot_lightning.objectives.couplings import Coupling, Identity
from aplot_lightning.objectives.links import Link, Logistic
from aplot_lightning.objectives.margins import (
    ColumnMargin,
    ConstantMargin,
    InstanceMargin,
    Margin,
    NoMargin,
    TransportMargin,
)
from aplot_lightning.objectives.objective import Objective, ObjectiveResult
from aplot_lightning.objectives.part import Part
from aplot_lightning.objectives.regularizers import Regularizer
from aplot_lightning.objectives.targets import ColumnTarget, HardTarget, LabelSmoothing, Target
from aplot_lightning.objectives.weightings import Weighting

__all__ = [
    "ColumnMargin",
    "ColumnTarget",
    "ConstantMargin",
    "Coupling",
    "HardTarget",
    "Identity",
    "InstanceMargin",
    "LabelSmoothing",
    "Link",
    "Logistic",
    "Margin",
    "NoMargin",
    "Objective",
    "ObjectiveResult",
    "Part",
    "Regularizer",
    "Target",
    "TransportMargin",
    "Weighting",
]
