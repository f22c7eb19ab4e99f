"""Weightings: factors on each pair's loss, computed from the batch."""

from __future__ import annotations

from aplot_lightning.objectives.weightings.min_norm import MinNorm
from aplot_lightning.objectives.weightings.norm import Norm
from aplot_lightning.objectives.weightings.partial_transport import PartialTransport

__all__ = ["MinNorm", "Norm", "PartialTransport"]
