"""Reads sources as a run does, but for the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from aplot_lightning.data.comparisons import Comparison
from aplot_lightning.data.encoding import Encoding
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.preparation import Cache, Corpus
from aplot_lightning.data.sources import Source


class Numbering:
    """In the place of an encoder: the tokens of a response are its number."""

    def encode_chunk(self, comparisons: Sequence[Comparison]) -> list[Encoding]:
        numbers = [range(len(comparison.responses)) for comparison in comparisons]
        return [Encoding([np.asarray([0, n], dtype=np.int32) for n in own], [1 for _ in own]) for own in numbers]

    def fingerprint(self) -> str:
        return "numbering"


def read_comparisons(
    source: Source, *, key: str, ledger: SourceLedger, on_bad_row: Literal["skip", "error"] = "skip"
) -> list[Comparison]:
    """The comparisons of a source that can be used; the others are counted in the ledger. Raises UserError as a run."""
    encoder: Any = Numbering()
    corpus = Corpus.prepared(key, [source], encoder, Cache())
    corpus.account([ledger], on_bad_row)
    return list(corpus.comparisons(corpus.usable()))
