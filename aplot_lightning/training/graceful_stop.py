"""How a run ends: with a validation, and after a whole step if it is asked to stop."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from aplot_lightning.training.checkpointing import LastCheckpoint
from aplot_lightning.training.lightning_internals import validation_is_due

ASKED = b"\nstopping after this step and a due validation (resume with --ckpt_path last); ctrl-C again stops at once\n"


class EndWithValidation(L.Callback):
    """Ends every run with a validation after its last step, which may then be the best.

    Lightning ends without one if `max_steps`, `val_check_interval` or `check_val_every_n_epoch` say so. It validates
    after a step at which the trainer is asked to stop, so this callback asks it to at the last step. It does not cover
    a run that another callback stops between two steps.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = None  # also in an epoch that would have no validation

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # before weight averaging replaces the weights by their average
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.on_train_end(trainer, module)


class Interrupted(SIGTERMException):
    """A run that stopped after a whole step because of ctrl-C."""


class GracefulStop(L.Callback):
    """On SIGTERM, ctrl-C or a batch system's warning, finishes the step, lets all ranks agree, and saves.

    The warning is SIGUSR1, or the signal that Lightning's SLURM environment names. A validation that is due after the
    step comes first, since a resumed run would skip it. Lightning's own handlers run collectives inside the signal
    handler, in which two ranks crash, and its ctrl-C saves in the middle of a step, with some of the weights already
    updated. A second ctrl-C ends the run at once and keeps the previous checkpoint.
    """

    def __init__(self) -> None:
        self.asked = False
        self.agreed = False
        self.interrupted = False
        self._prints = False
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._prints = trainer.is_global_zero
            environment = getattr(trainer.strategy, "cluster_environment", None)
            warning = getattr(environment, "requeue_signal", None) or getattr(signal, "SIGUSR1", None)
            if warning is not None:  # Windows has none
                # before Lightning looks for handlers, and before workers start, which it would kill
                self._previous[warning] = signal.signal(warning, self._ask)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # set by a shell for jobs in the background
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            if self._prints:
                os.write(2, ASKED)  # print is not safe in a signal handler
        self.asked = True

    def _stop(self) -> NoReturn:
        raise Interrupted if self.interrupted else SIGTERMException

    def on_train_batch_start(self, *arguments: Any) -> None:
        if self.agreed:
            self._stop()

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        self.agreed = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        if self.agreed and not validation_is_due(trainer):
            self._stop()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restore(signal.SIGTERM, signal.SIGINT)
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            self._stop()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self._restore(*self._previous)

    def _restore(self, *signals: int) -> None:
        for number in signals:
            if number in self._previous:
                signal.signal(number, self._previous.pop(number))
