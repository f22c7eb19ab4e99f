"""A reward model as a plain Transformers sequence-classification folder, which other programs load by themselves.

What makes it plain: a head that is one linear layer, a pad token that is never the scored one, a chat template that
writes every special token, and a config that Transformers 4 and 5 read alike.
"""

from __future__ import annotations

from aplot_lightning.model.export.facts import Exported
from aplot_lightning.model.export.writing import export_model

__all__ = ["Exported", "export_model"]
