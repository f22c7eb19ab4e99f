"""From the scores of a whole optimizer batch to a loss.

An objective combines a coupling, a link, a margin, a target, a weighting and regularizers. Each is a small class that
YAML names by its class path, for example `aplot_lightning.objectives.TransportMargin`. docs/method.md has the formulas.
"""

from __future__ import annotations

from aplot_lightning.objectives.component import Component, Coupling, Link, Margin, Regularizer, Target, Weighting
from aplot_lightning.objectives.couplings import Identity, Sorted
from aplot_lightning.objectives.ensemble import EnsembleObjective
from aplot_lightning.objectives.links import BetaLink, Fidelity, Focal, Hinge, Logistic, Probit
from aplot_lightning.objectives.margins import (
    ColumnMargin,
    ConstantMargin,
    InstanceMargin,
    NoMargin,
    TransportMargin,
)
from aplot_lightning.objectives.objective import Objective, ObjectiveResult
from aplot_lightning.objectives.regularizers import (
    BatchSum,
    Centering,
    InformationBottleneck,
    LengthDecorrelation,
    Positive,
    PriorConstraint,
    Text,
)
from aplot_lightning.objectives.targets import ColumnTarget, HardTarget, LabelSmoothing, Quality
from aplot_lightning.objectives.weightings import MinNorm, Norm, PartialTransport

__all__ = [
    "BatchSum",
    "BetaLink",
    "Centering",
    "ColumnMargin",
    "ColumnTarget",
    "Component",
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
