"""Packed rows: attention in which conversations share their beginning, for any decoder that Transformers runs it in."""

from __future__ import annotations

from aplot_lightning.model.tree.attention import PackedRow
from aplot_lightning.model.tree.packing import Packing, run_packed, start_packing

__all__ = ["PackedRow", "Packing", "run_packed", "start_packing"]
