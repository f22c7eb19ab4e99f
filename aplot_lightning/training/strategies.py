"""Strategies over ranks: what they need for runs that are exact and can go on, and which are refused."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from aplot_lightning.errors import UserError
from aplot_lightning.training.atomic import AtomicCheckpointIO


def check_strategy(config: Any) -> None:
    """Raises UserError for a strategy that cannot do exact steps over the whole optimizer batch.

    Args:
        config: the trainer's part of the config.
    """
    strategy = config.get("strategy", "auto")
    name = str(strategy if isinstance(strategy, str) else strategy.get("class_path", "")).rpartition(".")[2]
    if name.startswith("fsdp") or name == "FSDPStrategy":
        raise UserError(
            "trainer.strategy: FSDP1 keeps flat parameters, which have no weight-decay groups and cannot be clipped by "
            "norm; use FSDP2, --config conf/trainer/fsdp.yaml"
        )
    if name.startswith("deepspeed") or name == "DeepSpeedStrategy":
        raise UserError(
            "trainer.strategy: DeepSpeed owns the backward pass, and gradients of the whole optimizer batch need their "
            "own; use ddp or --config conf/trainer/fsdp.yaml"
        )
    if name.startswith("ddp_spawn") or name in ("ddp_notebook", "ddp_fork"):
        raise UserError("trainer.strategy: ranks are processes of their own; use ddp in place of it")


def prepare_strategy(trainer: L.Trainer) -> None:
    """What a fresh trainer's strategy lacks: whole checkpoint files, and all ranks as one group that shares weights."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:  # not a plugin that the user named
        strategy.checkpoint_io = AtomicCheckpointIO()
    if isinstance(strategy, ModelParallelStrategy):
        if strategy._save_distributed_checkpoint:  # Lightning's default: whether the user asked for it is not known
            rank_zero_info(
                "trainer.strategy: checkpoints are one file each, which from_pretrained reads and any strategy goes on "
                "from, not a folder of shards: save_distributed_checkpoint is false"
            )
            strategy._save_distributed_checkpoint = False
        if strategy._data_parallel_size == "auto":
            strategy._data_parallel_size = trainer.num_nodes * strategy.num_processes
        if strategy._tensor_parallel_size == "auto":
            strategy._tensor_parallel_size = 1
    environment = getattr(strategy, "cluster_environment", None)
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False  # GracefulStop saves, and the job's script queues it again


def check_averaging(trainer: L.Trainer, module: Any) -> None:
    """Raises UserError where Lightning's weight averaging would go wrong in silence."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, WeightAveraging):
            continue
        name = type(callback).__name__
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise UserError(
                f"trainer.callbacks: {name} copies the whole model, which FSDP2 shards; leave it out or use ddp"
            )
        if not all(parameter.is_floating_point() for parameter in module.parameters()):
            raise UserError(
                f"trainer.callbacks: {name} would average weights in four bits (model.lora.quantization); leave one of "
                "them out"
            )
        if _grows(module.objective):
            raise UserError(
                f"trainer.callbacks: {name} averages buffers of a fixed size, and the objective holds a queue that "
                "grows; choose a margin without one or leave the callback out"
            )
        whole_numbers = [key for key, buffer in module.named_buffers() if not buffer.is_floating_point()]
        if callback._use_buffers and whole_numbers:
            raise UserError(
                f"trainer.callbacks: {name} would average whole numbers ({whole_numbers[0]}); set its use_buffers to "
                "false"
            )


def _grows(objective: nn.Module) -> bool:
    return any(buffer.numel() == 0 for buffer in objective.buffers())
