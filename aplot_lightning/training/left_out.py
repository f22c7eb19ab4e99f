"""Checkpoints without their frozen backbone, for runs made by the hundred: kilobytes in place of its weights."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from aplot_lightning.errors import UserError
from aplot_lightning.model.checkpoint import LEFT_OUT

BACKBONE = "reward_model.backbone."


class BackboneLeftOut(L.Callback):
    """Takes a frozen backbone's weights out of checkpoints, and puts the model's own in their place when one is loaded.

    Such a file tells by its mark that it is no whole model; only a run of the same backbone goes on from it.

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
            raise UserError(f"checkpoint_backbone: false does not go with {other}; set it to true")
        if not self._completes:
            module.register_load_state_dict_pre_hook(_complete)
            self._completes = True

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith(BACKBONE)}
        checkpoint[LEFT_OUT] = self._sum_of(module)

    def on_load_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Raises UserError where the file was written beside another backbone; the weights are loaded by now."""
        if LEFT_OUT not in checkpoint:
            self._sum = None  # of the file's backbone from here on
        elif not math.isclose(self._sum_of(module), checkpoint[LEFT_OUT], rel_tol=1e-6):
            raise UserError(
                "--ckpt_path: the checkpoint was written without its backbone (checkpoint_backbone: false), and "
                "model.backbone is another one now: start anew by --overwrite true"
            )

    def _sum_of(self, module: Any) -> float:
        """Of all weights of the frozen backbone: it tells backbones apart well enough to catch a mistake."""
        if self._sum is None:
            weights = module.reward_model.backbone.state_dict().values()
            self._sum = sum(float(value.abs().sum(dtype=torch.float64)) for value in weights)
        return self._sum


def _complete(module: Any, state: dict[str, Tensor], *_: Any) -> None:
    """Before weights are loaded: the module's own backbone, where the file has none."""
    if not any(name.startswith(BACKBONE) for name in state):
        state.update({name: value for name, value in module.state_dict().items() if name.startswith(BACKBONE)})
