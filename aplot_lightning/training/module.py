"""RewardModelingModule: the reward model and its objective as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from aplot_lightning.data.datamodule import DataRequirements
from aplot_lightning.data.preparation import Cache
from aplot_lightning.errors import NotFiniteError, RunError, UserError
from aplot_lightning.model import RewardModel
from aplot_lightning.model.heads import Head
from aplot_lightning.model.lora import LoRA, check_shape
from aplot_lightning.objectives import Objective
from aplot_lightning.training.distributed import (
    check_precision,
    checkpoint_activations,
    clip_gradients,
    compile_blocks,
    gradient_scaler,
    is_sharded,
    report_emulation,
    shard,
)
from aplot_lightning.training.evaluation_module import EvaluationModule
from aplot_lightning.training.frozen_backbone import FrozenEmbeddings
from aplot_lightning.training.gradient_cache import StepResult, abandoned_step, whole_batch_step
from aplot_lightning.training.lightning_internals import restart_training_loader
from aplot_lightning.training.nonfinite import NotFinitePolicy, all_finite
from aplot_lightning.training.optimization import build_optimizer, learning_rate_share, number_by_model
from aplot_lightning.types import Batch


class RewardModelingModule(EvaluationModule):
    """Trains a reward model on optimizer batches of preference pairs.

    One item of the training loader is one optimizer batch of this rank, already cut into micro-batches; gradients are
    exactly those of the objective over the whole optimizer batch (see gradient_cache.py). The learning rate warms up
    linearly and falls as a cosine to zero, stepped once per optimizer batch.

    Args:
        backbone: a folder, a run, a hub name, or `world-decoder`, the small decoder of the embedded preference world.
        objective: what is minimised; Bradley-Terry by default.
        init_from: a run, checkpoint or folder whose weights start the run, in place of the backbone's.
        pooling: which state the head reads: the scored token's (last), the encoder's own classification path, or the
            mean over tokens; auto takes what the architecture's own sequence classification does.
        dtype: of the backbone's weights; rewards and losses are float32 in any case.
        attention: the attention implementation of Transformers, such as sdpa or flash_attention_2.
        dropout: of the backbone; off by default.
        learning_rate: the highest, after warm-up.
        weight_decay: decoupled, on matrices only (not on biases and norms).
        warmup_share: share of the optimizer steps in which the learning rate rises.
        head: what makes a reward of the embedding, and what else the objective needs; null for the head that the model
            comes with, else a linear one.
        keep_lm_head: keeps and trains the backbone's language-model head too, for objectives that read the probability
            of the chosen text; the backbone must be a causal language model.
        freeze_backbone: trains the head alone (and what the objective itself learns); the backbone drops nothing.
        cache_embeddings: with a frozen backbone, runs it over all conversations once, and keeps the embeddings in
            data.cache_dir for this run and later ones; not for a stream.
        cache_dtype: of the embeddings that are kept: float16 takes half the disk, and rounds to three digits.
        lora: trains adapters of low rank beside the backbone's frozen linear layers, and the head; its rank, alpha,
            dropout and targets, see LoRA in aplot_lightning/model/lora.py.
        optimizer: a class by its path, such as torch.optim.SGD, which takes groups of parameters; its learning rate
            and weight decay are those of the two keys above. Null for fused AdamW.
        gradient_checkpointing: keeps only each block's input for the backward pass, which runs the block again: less
            memory for about a third more time.
        compile: compiles each block (torch.compile), which takes minutes at the start.
        on_not_finite: for a step whose loss or gradient is not finite: stop ends the run, skip leaves weights and
            optimizer unchanged and continues with the next batch (counted in train/skipped_steps).
        skip_at_most: steps in a row that may be skipped; one more ends the run.
    """

    def __init__(
        self,
        backbone: str,
        objective: Objective | None = None,
        init_from: str | None = None,
        pooling: Literal["auto", "last", "classification", "mean"] = "auto",
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        attention: str | None = None,
        dropout: NonNegativeFloat = 0.0,
        learning_rate: PositiveFloat = 1e-5,
        weight_decay: NonNegativeFloat = 0.0,
        warmup_share: NonNegativeFloat = 0.03,
        head: Head | None = None,
        keep_lm_head: bool = False,
        freeze_backbone: bool = False,
        cache_embeddings: bool = True,
        cache_dtype: Literal["float32", "float16"] = "float32",
        lora: LoRA | None = None,
        optimizer: OptimizerCallable | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        on_not_finite: Literal["stop", "skip"] = "stop",
        skip_at_most: PositiveInt = 5,
    ) -> None:
        if freeze_backbone and keep_lm_head:
            raise UserError(
                "model.keep_lm_head trains the backbone through its language-model head, which model.freeze_backbone "
                "forbids: set one of them to false"
            )
        if freeze_backbone and lora is not None:
            raise UserError("model.lora trains beside a backbone that model.freeze_backbone leaves alone: set one")
        super().__init__(
            RewardModel.from_backbone(
                init_from or backbone,
                pooling=pooling,
                dtype=dtype,
                attention=attention,
                dropout=float(dropout),
                head=head,
                keep_lm_head=keep_lm_head,
            )
        )
        self.objective = objective or Objective()
        # plain floats: jsonargparse's own number types would end in the checkpoint, which must load without pickles
        self.learning_rate = float(learning_rate)
        self.weight_decay = float(weight_decay)
        self.warmup_share = float(warmup_share)
        self.optimizer = optimizer
        self.not_finite = NotFinitePolicy(on_not_finite, int(skip_at_most))
        self.last_step: StepResult | None = None  # what the latest optimizer step computed, for callbacks to look at
        self._abandoned: str | None = None
        self.cache_dtype: Literal["float32", "float16"] | None = None  # None where no embeddings are kept
        if freeze_backbone:
            self.reward_model.freeze_backbone()
            self.cache_dtype = cache_dtype if cache_embeddings else None
        if lora is not None:
            self.reward_model.add_lora(lora)
        if gradient_checkpointing:
            checkpoint_activations(self.reward_model)
        if compile:
            compile_blocks(self.reward_model)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the backbone, which the data module encodes with."""
        return self.reward_model.tokenizer

    def data_requirements(self) -> DataRequirements:
        """What the data module needs to know of the model."""
        return DataRequirements(
            tokenizer=self.tokenizer,
            position_limit=self.reward_model.backbone.position_limit,
            packing_refusal=lambda: self.reward_model.packing_refusal,
            embed=None if self.cache_dtype is None else self._embeddings,
        )

    def _embeddings(self, cache: Cache) -> FrozenEmbeddings:
        assert self.cache_dtype is not None
        return FrozenEmbeddings(self, cache, self.cache_dtype)

    def setup(self, stage: str) -> None:
        check_precision(self.trainer)
        report_emulation(self.trainer, self.reward_model.dtype)
        alone = self.objective.separable and any(True for _ in self.objective.buffers())
        if self.not_finite.skips and self.trainer.world_size > 1 and alone:
            raise UserError(
                "model.on_not_finite: ranks that fill a queue each cannot agree on a step to skip; set it to stop, or "
                "support of the margin to batch"
            )
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.reward_model.max_length = data.max_length
            self.reward_model.truncation = data.truncation
            if stage == "fit":
                self.require_columns(data.columns)

    def configure_model(self) -> None:
        """Shards the reward model in place under Lightning's ModelParallelStrategy (FSDP2); does nothing a second time.

        Raises UserError for tensor parallelism.
        """
        mesh = self.device_mesh
        if mesh is None or is_sharded(self.reward_model):
            return
        if mesh["tensor_parallel"].size() > 1:
            raise UserError(
                "trainer.strategy: tensor parallelism is not supported; set tensor_parallel_size to 1 and "
                "data_parallel_size to the number of ranks"
            )
        self.trainer.strategy.precision_plugin.convert_module(self)
        shard(self.reward_model, mesh["data_parallel"], str(self.trainer.precision_plugin.precision))

    def require_columns(self, missing: Mapping[str, int]) -> None:
        """Raises UserError if the objective needs a column that training pairs lack, or another head.

        Args:
            missing: each column that the training data has, and how many pairs are without a value.
        """
        self.objective.require(missing, self.reward_model.tensor_names, self.reward_model.head_is_linear)
        for column, part in self.objective.columns.items():
            if missing[column]:
                raise UserError(
                    f'{part} needs the column "{column}", which {missing[column]} training pairs do not have: add it '
                    f"to all rows of data.train or choose another part in place of {part}"
                )

    # Training

    def on_train_start(self) -> None:
        restart_training_loader(self.trainer)

    def training_step(self, micro_batches: list[Batch], batch_index: int) -> Tensor:
        self._reseed()
        self.zero_grad(set_to_none=True)
        self.not_finite.remember(self.objective)
        self._abandoned = None
        try:
            step = whole_batch_step(self._score, self.objective, micro_batches, self._backward_inner)
        except NotFiniteError as error:
            if not self.not_finite.skips:
                raise RunError(self._not_finite(str(error))) from error
            self._abandoned = str(error)
            step = abandoned_step(self._score, micro_batches)
        self.last_step = step
        self._log_step(step)
        return step.loss

    def _backward_inner(self, loss: Tensor) -> None:
        """Back-propagates all micro-batches but the last: scaled as Lightning scales the last, not reduced over ranks.

        DistributedDataParallel reduces only after the last one; FSDP2 needs the switch.
        """
        scaler = gradient_scaler(self.trainer)
        if scaler is not None:
            loss = scaler.scale(loss)
        if not is_sharded(self.reward_model):
            loss.backward()
            return
        sharded: Any = self.reward_model
        sharded.set_requires_gradient_sync(False)
        loss.backward()
        sharded.set_requires_gradient_sync(True)

    def optimizer_zero_grad(self, *arguments: Any, **options: Any) -> None:
        """Does nothing: training_step zeroes the gradients before its own backward passes."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keeps values that are not finite out of the weights: the step's one wait for the device.

        Raises RunError with the step and the likely causes if the run must stop; the last checkpoint stays.
        """
        assert self.last_step is not None
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        loss_is_finite, finite = all_finite(self.last_step.result.loss, gradients)
        if finite:
            self.not_finite.taken()
        else:
            what = self._abandoned or f"{'a gradient' if loss_is_finite else 'the loss'} is not finite"
            # a gradient scaler sometimes tries too high a scale, skips the step by itself and lowers the scale
            overflow = loss_is_finite and gradient_scaler(self.trainer) is not None
            self.not_finite.skip(self._not_finite(what), counts=not overflow)
            self.zero_grad(set_to_none=True)  # parameters without gradients stay as they are, and so does their state
        if self.not_finite.skips or self.not_finite.skipped:
            self.log("train/skipped_steps", float(self.not_finite.skipped), rank_zero_only=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, and also for fused optimizers under bf16-mixed."""
        if gradient_clip_val and gradient_scaler(self.trainer) is None:
            clip_gradients(self.trainer, optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _not_finite(self, what: str) -> str:
        return (
            f"step {self.global_step + 1}: {what}; the run stops before it reaches the weights, and the last "
            "checkpoint stays. Likely causes: a learning rate that is too high (model.learning_rate "
            f"{self.learning_rate:g}), half precision (try --trainer.precision 32-true), or weights that were not "
            "finite to begin with; --model.on_not_finite skip continues after single bad steps"
        )

    def configure_optimizers(self) -> Any:
        scaled = gradient_scaler(self.trainer) is not None
        optimizer = build_optimizer(
            self.parameters(), self.optimizer, self.learning_rate, self.weight_decay, scaled=scaled
        )
        schedule = LambdaLR(optimizer, self._learning_rate_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_share(self, step: int) -> float:
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            total = self.trainer.num_training_batches
        return learning_rate_share(step, total, self.warmup_share)

    def _reseed(self) -> None:
        """Sets one seed per step and rank, so that a resumed run draws the dropout masks of an undisturbed one."""
        data = getattr(self.trainer, "datamodule", None)
        words = [getattr(data, "seed", 0), self.global_step, self.global_rank]
        seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # the other formats a traceback for CUDA each time: 0.7 ms
        else:
            torch.manual_seed(seed)

    def _log_step(self, step: StepResult) -> None:
        gaps = step.result.gaps
        target = step.pairs.columns.get("target", torch.ones_like(gaps))
        counted = target != 0.5
        right = ((gaps * (2 * target - 1)) > 0).float() * counted
        values = {
            "train/loss": step.result.loss,
            "train/accuracy": right.sum() / counted.sum().clamp(min=1),
            "train/gap": gaps.mean(),
        }
        self.log_dict(values, batch_size=len(gaps), rank_zero_only=True)
        if self.trainer.progress_bar_callback is not None:
            self.log("loss", step.result.loss, prog_bar=True, logger=False, batch_size=len(gaps), rank_zero_only=True)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what RewardModel.from_pretrained needs to build the model without the backbone's folder.

        Optimizer states are numbered so that a run on another number of ranks, sharded or not, reads them correctly.
        """
        checkpoint["reward_model"] = self.reward_model.describe()
        checkpoint["not_finite"] = self.not_finite.state_dict()
        strategy = self.trainer.strategy
        if "optimizer_states" in checkpoint and not isinstance(strategy, ModelParallelStrategy):
            parameters = list(self.parameters())
            checkpoint["optimizer_states"] = [
                number_by_model(state, optimizer, parameters)
                for state, optimizer in zip(checkpoint["optimizer_states"], strategy.optimizers, strict=True)
            ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_shape(self.reward_model.lora, checkpoint.get("reward_model", {}).get("lora"))
        self.not_finite.load_state_dict(checkpoint.get("not_finite", {}))
