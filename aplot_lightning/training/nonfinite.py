"""Stops the run or skips the step if an optimizer step's loss or gradient is not finite."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from aplot_lightning.errors import RunError


class NotFinitePolicy:
    """Stops the run, or skips the step: weights, optimizer and objective keep their state.

    The next step takes the next batch and the next learning rate. All ranks decide alike, since they see the same loss
    and the same reduced gradients.

    Args:
        policy: stop or skip.
        at_most: skipped steps in a row; one more stops the run.

    Attributes:
        skipped: steps that were skipped, over the whole run.
        in_a_row: of them, those since the last step that was taken.
    """

    def __init__(self, policy: Literal["stop", "skip"], at_most: int) -> None:
        self.policy = policy
        self.at_most = at_most
        self.skipped = 0
        self.in_a_row = 0
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []

    @property
    def skips(self) -> bool:
        return self.policy == "skip"

    def remember(self, objective: nn.Module) -> None:
        """Copies the objective's buffers (a queue, a moving average), which its forward changes."""
        self._buffers = [
            (module, name, buffer.clone())
            for module in objective.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]

    def skip(self, message: str, counts: bool = True) -> None:
        """Restores the objective's buffers. Raises RunError if the run must stop.

        Args:
            message: what happened at which step.
            counts: False for an overflow of a gradient scaler, which never stops the run.
        """
        if counts and not self.skips:
            raise RunError(message)
        if counts and self.in_a_row >= self.at_most:
            raise RunError(f"{message}; {self.in_a_row} steps before it were skipped (model.skip_at_most)")
        self.skipped += 1
        self.in_a_row += counts
        for module, name, buffer in self._buffers:
            setattr(module, name, buffer)

    def taken(self) -> None:
        """Counts a step that was finite."""
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)


def all_finite(loss: Tensor, gradients: list[Tensor]) -> tuple[bool, bool]:
    """Whether the loss is finite, and whether it and all gradients are; waits for the device once in the good case."""
    norm: Any = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if torch.isfinite(norm + loss):
        return True, True
    return bool(torch.isfinite(loss)), False
