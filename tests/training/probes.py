"""Callbacks that disturb a run from outside its configuration, named by class path in trainer.callbacks."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from typing import Any

import lightning as L
import torch


class Interrupt(L.Callback):
    """At the start of the step after `step`, or in the validation that follows `step`, an accident.

    Args:
        step: optimizer steps before it.
        how: the name of a signal, `group` and the name of one to the whole process group, or an exception (crash).
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
            number = getattr(signal, self.how.removeprefix("group "))
            if self.how.startswith("group "):  # as a terminal or a batch system does: loader workers get it too
                os.killpg(os.getpgid(0), number)
            else:
                os.kill(os.getpid(), number)


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


class BadSteps(L.Callback):
    """In the steps after `steps`, what the model gives (rewards), or the gradient (gradient), is NaN for once."""

    def __init__(self, steps: list[int], where: str = "rewards") -> None:
        self.steps, self.where = steps, where

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *arguments: Any) -> None:
        if trainer.global_step in self.steps and self.where == "rewards":
            self.handle = module.reward_model.head.register_forward_hook(
                lambda _, inputs, tensors: {**tensors, "rewards": tensors["rewards"] * float("nan")}
            )

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step in self.steps and self.where == "gradient":
            next(p for p in module.parameters() if p.grad is not None).grad.fill_(float("nan"))

    def on_train_batch_end(self, *arguments: Any) -> None:
        if hasattr(self, "handle"):
            self.handle.remove()
            del self.handle


class NoMemory(L.Callback):
    """After `step`, the model asks for more memory than there is, in the second micro-batch."""

    def __init__(self, step: int) -> None:
        self.step, self.calls = step, 0

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            module.reward_model.backbone.register_forward_pre_hook(self._allocate)

    def _allocate(self, *arguments: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            torch.empty(1 << 60, dtype=torch.uint8)


class SmallDisk(L.Callback):
    """After `step`, no file may become larger than so many bytes."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))

    def on_exception(self, *arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class KillWorkers(L.Callback):
    """Kills the processes that prepare batches, before `step` ends."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            for process in multiprocessing.active_children():
                process.kill()


class KillRank(L.Callback):
    """Kills a rank before the step after `step`, or with SIGSTOP makes it fall silent."""

    def __init__(self, step: int, rank: int, how: str = "SIGKILL") -> None:
        self.step, self.rank, self.how = step, rank, how

    def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            os.kill(os.getpid(), getattr(signal, self.how))
