"""Margins: what the loss asks of a pair's gap beyond zero."""

from __future__ import annotations

from aplot_lightning.objectives.margins.instance import InstanceMargin
from aplot_lightning.objectives.margins.plain import ColumnMargin, ConstantMargin, NoMargin
from aplot_lightning.objectives.margins.transport import TransportMargin

__all__ = ["ColumnMargin", "ConstantMargin", "InstanceMargin", "NoMargin", "TransportMargin"]
