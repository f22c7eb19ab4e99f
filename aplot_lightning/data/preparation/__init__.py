"""What is kept of a source on disk, so that it is read and tokenised once, and a million pairs fit into little memory.

Two levels of entries in a folder of the user's (`Cache`), each keyed by all that decides its content: ``read`` (texts,
and what is known of each row without a tokenizer) and ``tokens``. `prepare` makes or finds both, `Corpus` judges what
was read: which comparisons contradict or repeat each other, cannot be encoded, or leak.
"""

from __future__ import annotations

from aplot_lightning.data.preparation.cache import Cache
from aplot_lightning.data.preparation.corpus import Corpus
from aplot_lightning.data.preparation.facts import facts_of, held_out_columns
from aplot_lightning.data.preparation.prepare import PreparedSource, prepare
from aplot_lightning.data.preparation.texts import Selection, labels

__all__ = ["Cache", "Corpus", "PreparedSource", "Selection", "facts_of", "held_out_columns", "labels", "prepare"]
