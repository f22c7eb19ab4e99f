"""From the scores of a whole optimizer batch to a loss: one objective is a link, a margin and a target.

Every part is a small class that YAML names by its class path, for example `aplot_lightning.objectives.TransportMargin`.
"""

from __future__ import annotations

from aplot_lightning.objectives.couplings import Coupling, Identity, Sorted
from aplot_lightning.objectives.ensemble import EnsembleObjective
from aplot_lightning.objectives.links import BetaLink, Fidelity, Focal, Hinge, Link, Logistic, Probit
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
from aplot_lightning.objectives.regularizers import (
    BatchSum,
    Centering,
    InformationBottleneck,
    LengthDecorrelation,
    Positive,
    PriorConstraint,
    Regularizer,
    Text,
)
from aplot_lightning.objectives.targets import ColumnTarget, HardTarget, LabelSmoothing, Quality, Target
from aplot_lightning.objectives.weightings import MinNorm, Norm, PartialTransport, Weighting

__all__ = [
    "BatchSum",
    "BetaLink",
    "Centering",
    "ColumnMargin",
    "ColumnTarget",
    "ConstantMargin",
    "Coupling",
    "EnsembleObjective",
    "Fidelity",
    "Focal",
    "HardTarget",
    "Hinge",
    "Identity",
    "InformationBottleneck",
    "InstanceMargin",
    "LabelSmoothing",
    "LengthDecorrelation",
    "Link",
    "Logistic",
    "Margin",
    "MinNorm",
    "NoMargin",
    "Norm",
    "Objective",
    "ObjectiveResult",
    "Part",
    "PartialTransport",
    "Positive",
    "PriorConstraint",
    "Probit",
    "Quality",
    "Regularizer",
    "Sorted",
    "Target",
    "Text",
    "TransportMargin",
    "Weighting",
]
