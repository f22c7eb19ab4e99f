"""Precisions of the trainer that suit a float32 head and loss, and why the others do not."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from aplot_lightning.errors import UserError
from aplot_lightning.model.configuration import emulation
from aplot_lightning.model.lora import widen_adapters
from aplot_lightning.training.blocks import is_sharded


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
    """Raises UserError where a plain Trainer's plugin would convert the head or the pairs' columns."""
    if isinstance(trainer.precision_plugin, HalfPrecision):
        raise UserError(
            "precision: Lightning's half precision would convert the head and the pairs' margins too; give the Trainer "
            "plugins=[aplot_lightning.training.precision.BFloat16Backbone()] in place of precision"
        )


def tell_emulated(trainer: L.Trainer, weights: str) -> None:
    """Says it where a run multiplies matrices in a precision that its processor only emulates.

    Args:
        trainer: its precision comes before that of the weights.
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

    Lightning refuses the latter for the sake of scalers, of which bf16-mixed has none.
    """
    kind = GradClipAlgorithmType(algorithm or "norm")
    Precision.clip_gradients(trainer.precision_plugin, optimizer, value, kind)


def gradient_scaler(trainer: L.Trainer) -> Any:
    """The gradient scaler of 16-mixed, or None."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None
