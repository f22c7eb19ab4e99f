"""Callbacks that disturb a run from outside its configuration, named by class path in trainer.callbacks."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import lightning as L
import torch


class Interrupt(L.Callback):
    """At the start of the step after `step`, or in the validation that follows `step`, an accident.

    Args:
        step: optimizer steps before it.
        how: the name of a signal, SIGTERM to the whole process group (group), or an exception (crash).
        in_validation: in the validation.
    """

    def __init__(self, step: int, how: str = "crash", in_validation: bool = False) -> None:
        self.step, self.how, self.in_validation = step, how, in_validation

    def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        if not self.in_validation:
            self._strike(trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        if self.in_validation:
            self._strike(trainer)

    def _strike(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self.step:
            self.step = -1
            if self.how == "crash":
                raise MemoryError("as if the machine had gone")
            if self.how == "group":  # as a terminal or a batch system does: loader workers get it too
                os.killpg(os.getpgid(0), signal.SIGTERM)
            else:
                os.kill(os.getpid(), getattr(signal, self.how))


class Poison(L.Callback):
    """Makes a weight NaN before the step after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(module.parameters()).fill_(float("nan"))


class SlowValidation(L.Callback):
    """Sleeps in every validation."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_validation_batch_end(self, *arguments: Any) -> None:
        time.sleep(self.seconds)
