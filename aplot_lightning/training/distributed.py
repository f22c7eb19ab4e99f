"""Ranks, precision and blocks: strategies that allow exact steps, precisions that suit a float32 head, and FSDP2."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from aplot_lightning.errors import UserError
from aplot_lightning.model import RewardModel
from aplot_lightning.model.backbone.blocks import blocks_of
from aplot_lightning.model.configuration import emulation
from aplot_lightning.model.lora import widen_adapters
from aplot_lightning.training.checkpointing import AtomicCheckpointIO
from aplot_lightning.training.lightning_internals import (
    averages_buffers,
    share_weights_over_all_ranks,
    use_whole_checkpoints,
)

# Strategies


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
            "trainer.strategy: DeepSpeed runs the backward pass itself, but gradients of the whole optimizer batch "
            "need their own; use ddp or --config conf/trainer/fsdp.yaml"
        )
    if name.startswith("ddp_spawn") or name in ("ddp_notebook", "ddp_fork"):
        raise UserError("trainer.strategy: each rank must be its own process; use ddp instead")


def prepare_strategy(trainer: L.Trainer) -> None:
    """Sets up a fresh trainer's strategy: atomic checkpoint files, and all ranks as one group that shares weights."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:  # not a plugin that the user named
        strategy.checkpoint_io = AtomicCheckpointIO()
    if isinstance(strategy, ModelParallelStrategy):
        if use_whole_checkpoints(strategy):  # it is Lightning's default: the user may not have set it
            rank_zero_info(
                "trainer.strategy: each checkpoint is one file, which from_pretrained and every strategy can read, not "
                "a folder of shards: save_distributed_checkpoint is false"
            )
        share_weights_over_all_ranks(strategy, trainer.num_nodes * strategy.num_processes)
    environment = getattr(strategy, "cluster_environment", None)
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False  # GracefulStop saves, and the job's script requeues it


def check_averaging(trainer: L.Trainer, module: Any) -> None:
    """Raises UserError if Lightning's weight averaging would silently give wrong weights."""
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
        if averages_buffers(callback) and whole_numbers:
            raise UserError(
                f"trainer.callbacks: {name} would average whole numbers ({whole_numbers[0]}); set its use_buffers to "
                "false"
            )


def _grows(objective: nn.Module) -> bool:
    return any(buffer.numel() == 0 for buffer in objective.buffers())


# Precision


class BFloat16Backbone(Precision):
    """`bf16-true` for a reward model: the backbone becomes bfloat16; head, adapters, scores and losses stay float32.

    Lightning's own plugin would convert the head and the pairs' margins and targets too.
    """

    precision = "bf16-true"

    def convert_module(self, module: nn.Module) -> nn.Module:
        reward_model: Any = module.reward_model
        if is_sharded(reward_model):  # converted before that
            return module
        reward_model.backbone.to(torch.bfloat16)
        widen_adapters(reward_model.backbone)
        reward_model.dtype = "bfloat16"
        return module


def suitable_precision(options: dict[str, Any]) -> dict[str, Any]:
    """Trainer options with `bf16-true` replaced by the plugin of this file. Raises UserError for `16-true`.

    Args:
        options: the trainer's `precision` and `plugins`.
    """
    precision = str(options.get("precision"))
    if precision == "16-true":
        raise UserError(
            "trainer.precision: 16-true trains weights in float16, whose small updates are lost; choose bf16-true, "
            "bf16-mixed or 16-mixed"
        )
    if precision != "bf16-true":
        return {}
    plugins = options.get("plugins") or []
    return {"precision": None, "plugins": [*(plugins if isinstance(plugins, list) else [plugins]), BFloat16Backbone()]}


def check_precision(trainer: L.Trainer) -> None:
    """Raises UserError if a plain Trainer's plugin would convert the head or the pairs' columns."""
    if isinstance(trainer.precision_plugin, HalfPrecision):
        raise UserError(
            "precision: Lightning's half precision would convert the head and the pairs' margins too; give the Trainer "
            "plugins=[aplot_lightning.training.distributed.BFloat16Backbone()] in place of precision"
        )


def report_emulation(trainer: L.Trainer, weights: str) -> None:
    """Logs a line if the processor only emulates the precision that a run multiplies matrices in.

    Args:
        trainer: its precision overrides that of the weights.
        weights: the name of the backbone's dtype.
    """
    key, name = "model.dtype", weights
    for beginning, half in {"bf16": "bfloat16", "16": "float16"}.items():
        if str(trainer.precision).startswith(beginning):
            key, name = "trainer.precision", half
    slow = emulation(name, trainer.strategy.root_device)
    if slow is not None:
        rank_zero_info(f"{key}: {slow}")


def clip_gradients(trainer: L.Trainer, optimizer: torch.optim.Optimizer, value: float, algorithm: str | None) -> None:
    """Clips gradients that no scaler has scaled, also those of a fused optimizer under bf16-mixed.

    Lightning refuses the latter because of scalers, which bf16-mixed does not have.
    """
    kind = GradClipAlgorithmType(algorithm or "norm")
    Precision.clip_gradients(trainer.precision_plugin, optimizer, value, kind)


def gradient_scaler(trainer: L.Trainer) -> Any:
    """The gradient scaler of 16-mixed, or None."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


# Blocks


def checkpoint_activations(reward_model: RewardModel) -> None:
    """Keeps only each block's input for the backward pass, which runs the block again (non-reentrant).

    Raises UserError for an architecture for which Transformers does not support it.
    """
    model: Any = reward_model.backbone.model
    # the newer name of Transformers 5, or the older one
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"model.gradient_checkpointing: {model.config.model_type} does not support it; leave it false and lower "
            "data.micro_batch_size"
        ) from error


def compile_blocks(reward_model: RewardModel) -> None:
    """Compiles each block in place for any length; the names of its weights stay."""
    for block in blocks_of(reward_model.backbone.model):
        block.compile(dynamic=True)


def shard(reward_model: RewardModel, mesh: DeviceMesh, precision: str) -> None:
    """Shards in place with FSDP2: each block, the head, and the rest are one group of parameters each.

    The head is its own group because it stays float32, whatever the backbone's dtype.

    Args:
        reward_model: a whole model, the same on every rank.
        mesh: one-dimensional, the ranks that share the weights.
        precision: of the trainer. Under ``bf16-mixed`` blocks are gathered as bf16 and their gradients reduced as
            float32; autocast decides about the inputs, as without sharding.

    Raises:
        UserError: weights are in four bits, which FSDP2 cannot gather.
    """
    if not all(parameter.is_floating_point() for parameter in reward_model.parameters()):
        raise UserError(
            "trainer.strategy: weights in four bits (model.lora.quantization) are not sharded; use ddp, or leave "
            "quantization out"
        )
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    blocks = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16-mixed" else None,
        reduce_dtype=None if precision == "32-true" else torch.float32,
        cast_forward_inputs=False,
    )
    for block in blocks_of(reward_model.backbone.model):
        fully_shard(block, mesh=mesh, mp_policy=blocks)
    fully_shard(reward_model.head, mesh=mesh, mp_policy=policy)
    fully_shard(reward_model, mesh=mesh, mp_policy=policy)


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 holds this module."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
