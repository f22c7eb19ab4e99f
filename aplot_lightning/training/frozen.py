"""Training a head alone: the frozen backbone's embeddings on disk, for the data module to make batches of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from aplot_lightning.data.batching import Layout
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.preparation import Cache
from aplot_lightning.model.embedding_cache import Advance, EmbeddingCache, StoredEmbeddings
from aplot_lightning.training.blocks import is_sharded


class FrozenEmbeddings:
    """Embeds comparisons with a trainer's reward model when loaders are made, for one call of the trainer.

    Only then is the model on its device, and holds the weights of the checkpoint that the call was given.

    Args:
        trainer: its module has a frozen reward model.
        cache: where embeddings are kept.
        dtype: of the numbers on disk.
    """

    def __init__(self, trainer: L.Trainer, cache: Cache, dtype: Literal["float32", "float16"]) -> None:
        self.trainer = trainer
        self.cache = cache
        self.dtype: Literal["float32", "float16"] = dtype
        self._embeddings: EmbeddingCache | None = None

    def __call__(self, encoded: EncodedComparisons, layout: Layout) -> StoredEmbeddings:
        """The embeddings of all conversations, the same on every rank; `layout` is of the backbone's batches."""
        if self._embeddings is None:
            self._embeddings = self._open()
        return self._embeddings.embed(encoded, layout)

    def _open(self) -> EmbeddingCache:
        trainer, module = self.trainer, self._module
        together = is_sharded(module.reward_model)
        return EmbeddingCache(
            module.reward_model,
            self.cache,
            dtype=self.dtype,
            precision=str(trainer.precision),
            context=trainer.precision_plugin.forward_context,
            progress=self._progress,
            rank=trainer.global_rank,
            world=trainer.world_size,
            agree=self._any_rank if together else None,
        )

    @property
    def _module(self) -> Any:
        return self.trainer.lightning_module

    def _any_rank(self, yes: bool) -> bool:
        return self.trainer.strategy.reduce_boolean_decision(yes, all=False)

    @contextmanager
    def _progress(self, conversations: int) -> Iterator[Advance]:
        from tqdm import tqdm

        shown = self.trainer.is_global_zero and sys.stderr.isatty()
        if not shown:
            rank_zero_info(f"the frozen backbone embeds {conversations} conversations, which {self.cache.folder} keeps")
        with tqdm(total=conversations, desc="embeddings", unit=" conversations", disable=not shown) as bar:
            yield bar.update
