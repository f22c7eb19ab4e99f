"""Regularizers: terms that are added to the loss of the pairs."""

from __future__ import annotations

from aplot_lightning.objectives.regularizers.batch_sum import BatchSum
from aplot_lightning.objectives.regularizers.centering import Centering
from aplot_lightning.objectives.regularizers.information_bottleneck import InformationBottleneck
from aplot_lightning.objectives.regularizers.length_decorrelation import LengthDecorrelation
from aplot_lightning.objectives.regularizers.positive import Positive
from aplot_lightning.objectives.regularizers.prior_constraint import PriorConstraint
from aplot_lightning.objectives.regularizers.text import Text

__all__ = [
    "BatchSum",
    "Centering",
    "InformationBottleneck",
    "LengthDecorrelation",
    "Positive",
    "PriorConstraint",
    "Text",
]
