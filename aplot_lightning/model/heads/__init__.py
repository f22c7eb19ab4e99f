"""From embeddings to rewards, and to what else an objective needs of each response.

`model.head` in YAML names a head by its class path, for example `aplot_lightning.model.heads.MLP`.
"""

from __future__ import annotations

from aplot_lightning.model.heads.bottleneck import Bottleneck
from aplot_lightning.model.heads.ensemble import Ensemble
from aplot_lightning.model.heads.head import Head
from aplot_lightning.model.heads.linear import Linear
from aplot_lightning.model.heads.mlp import MLP
from aplot_lightning.model.heads.positive import WithConfidence, WithVariance
from aplot_lightning.model.heads.quality_and_length import QualityAndLength
from aplot_lightning.model.heads.registry import HEADS, build_head, make_head

__all__ = [
    "HEADS",
    "MLP",
    "Bottleneck",
    "Ensemble",
    "Head",
    "Linear",
    "QualityAndLength",
    "WithConfidence",
    "WithVariance",
    "build_head",
    "make_head",
]
