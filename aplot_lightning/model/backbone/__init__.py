"""From tokens to embeddings: any Hugging Face encoder or decoder, and the pooling on top of it.

An architecture's sequence-classification class is used where there is one, with its last linear layer taken out to be
the head of the reward model: put back, it makes a plain Transformers model with exactly the same rewards.
"""

from __future__ import annotations

from aplot_lightning.model.backbone.backbone import Backbone, BackboneOutput, Pooling, pool
from aplot_lightning.model.backbone.loading import build_backbone, load_backbone
from aplot_lightning.model.backbone.splitting import HeadShape

__all__ = [
    "Backbone",
    "BackboneOutput",
    "HeadShape",
    "Pooling",
    "build_backbone",
    "load_backbone",
    "pool",
]
