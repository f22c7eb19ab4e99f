"""The backbone's blocks, one by one: their activations computed again, compiled, or sharded over ranks (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from aplot_lightning.errors import UserError
from aplot_lightning.model import RewardModel
from aplot_lightning.model.backbone.blocks import blocks_of


def checkpoint_activations(reward_model: RewardModel) -> None:
    """Keeps only each block's input for the backward pass, which runs the block again (non-reentrant).

    Raises UserError for an architecture that Transformers cannot do it for.
    """
    model: Any = reward_model.backbone.model
    # the older name of Transformers 5 gives way to the newer one
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"model.gradient_checkpointing: {model.config.model_type} does not support it; leave it false and lower "
            "data.micro_batch_size"
        ) from error


def compile_blocks(reward_model: RewardModel) -> None:
    """Compiles each block in place with lengths left open; the names of its weights stay."""
    for block in blocks_of(reward_model.backbone.model):
        block.compile(dynamic=True)


def shard(reward_model: RewardModel, mesh: DeviceMesh, precision: str) -> None:
    """FSDP2 in place: each block, the head, and what is left are one group of sharded parameters each.

    The head is a group of its own because it stays float32, whatever the backbone's dtype.

    Args:
        reward_model: a whole model, the same on every rank.
        mesh: one-dimensional, the ranks that share the weights.
        precision: of the trainer. Under ``bf16-mixed`` blocks are gathered as bf16 and their gradients reduced as
            float32; autocast decides about the inputs, as without sharding.

    Raises:
        UserError: weights are in four bits, which FSDP2 cannot gather as they are.
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
