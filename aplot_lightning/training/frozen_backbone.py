"""Runs with a frozen backbone: it embeds every conversation once, and checkpoints may skip it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from aplot_lightning.data.batching import Layout
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.preparation import Cache
from aplot_lightning.errors import UserError
from aplot_lightning.model.checkpoint import LEFT_OUT
from aplot_lightning.model.embedding_cache import Advance, EmbeddingCache, StoredEmbeddings
from aplot_lightning.training.distributed import is_sharded

BACKBONE = "reward_model.backbone."


class FrozenEmbeddings:
    """Embeds comparisons with a module's reward model when loaders are made, for one call of the trainer.

    Only then is the model on its device and holds the weights of the call's checkpoint.

    Args:
        module: has a frozen reward model, and a trainer when loaders are made.
        cache: where embeddings are kept.
        dtype: of the numbers on disk.
    """

    def __init__(self, module: Any, cache: Cache, dtype: Literal["float32", "float16"]) -> None:
        self.module = module
        self.cache = cache
        self.dtype: Literal["float32", "float16"] = dtype
        self._embeddings: EmbeddingCache | None = None

    def __call__(self, encoded: EncodedComparisons, layout: Layout) -> StoredEmbeddings:
        """The embeddings of all conversations, the same on every rank; `layout` is of the backbone's batches."""
        if self._embeddings is None:
            self._embeddings = self._open()
        return self._embeddings.embed(encoded, layout)

    def _open(self) -> EmbeddingCache:
        trainer, module = self.module.trainer, self.module
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

    def _any_rank(self, yes: bool) -> bool:
        return self.module.trainer.strategy.reduce_boolean_decision(yes, all=False)

    @contextmanager
    def _progress(self, conversations: int) -> Iterator[Advance]:
        from tqdm import tqdm

        shown = self.module.trainer.is_global_zero and sys.stderr.isatty()
        if not shown:
            rank_zero_info(
                f"the frozen backbone embeds {conversations} conversations and keeps them in {self.cache.folder}"
            )
        with tqdm(total=conversations, desc="embeddings", unit=" conversations", disable=not shown) as bar:
            yield bar.update


class SkipFrozenBackbone(L.Callback):
    """Leaves a frozen backbone's weights out of checkpoints, and takes the model's own when one is loaded.

    Such a file is marked as incomplete; only a run with the same backbone can resume from it.

    Raises:
        UserError: the backbone trains, or a strategy or callback needs its weights in the file.
    """

    def __init__(self) -> None:
        self._sum: float | None = None
        self._completes = False

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if not module.reward_model.frozen:
            raise UserError(
                "checkpoint_backbone: false leaves the backbone out of checkpoints, and this one trains: set it to "
                "true, or model.freeze_backbone to true"
            )
        averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if averages or isinstance(trainer.strategy, ModelParallelStrategy):
            other = "weight averaging" if averages else "FSDP2"
            raise UserError(f"checkpoint_backbone: false does not work with {other}; set it to true")
        if not self._completes:
            module.register_load_state_dict_pre_hook(_complete)
            self._completes = True

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith(BACKBONE)}
        checkpoint[LEFT_OUT] = self._sum_of(module)

    def on_load_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Raises UserError if the file was written with another backbone; the weights are loaded by now."""
        if LEFT_OUT not in checkpoint:
            self._sum = None  # the file had its backbone: compute the sum anew
        elif not math.isclose(self._sum_of(module), checkpoint[LEFT_OUT], rel_tol=1e-6):
            raise UserError(
                "--ckpt_path: the checkpoint was written without its backbone (checkpoint_backbone: false), and "
                "model.backbone has changed: start again with --overwrite true"
            )

    def _sum_of(self, module: Any) -> float:
        """The sum of all absolute weights of the frozen backbone, which differs between backbones."""
        if self._sum is None:
            weights = module.reward_model.backbone.state_dict().values()
            self._sum = sum(float(value.abs().sum(dtype=torch.float64)) for value in weights)
        return self._sum


def _complete(module: Any, state: dict[str, Tensor], *_: Any) -> None:
    """Adds the module's own backbone to a state dict without one, before it is loaded."""
    if not any(name.startswith(BACKBONE) for name in state):
        state.update({name: value for name, value in module.state_dict().items() if name.startswith(BACKBONE)})
