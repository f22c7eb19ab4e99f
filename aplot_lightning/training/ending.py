"""How a run ends: with a validation, and in good order when it is asked to stop."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from aplot_lightning.training.checkpoints import LastCheckpoint, validation_is_due

ASKED = b"\nstopping after this step and any validation due (go on by --ckpt_path last); ctrl-C again stops at once\n"


class EndWithValidation(L.Callback):
    """Ends every run with a validation of its last step, wherever in an epoch it ends, so that it may be best.

    Lightning by itself ends without one where `max_steps`, `val_check_interval` or `check_val_every_n_epoch` say so.
    """

    def __init__(self) -> None:
        self._validated_at = -1

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._validated_at = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._validated_at != trainer.global_step and trainer.limit_val_batches != 0:
            self._validate(trainer)
        # before weight averaging puts the average in the weights' place: a longer run goes on from here
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.on_train_end(trainer, module)

    def _validate(self, trainer: L.Trainer) -> None:
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = trainer.global_step - 1  # loggers count from 0, as for validations in an epoch
        loop.val_loop.restarting = False  # a run that was stopped at its last step goes on with this, from its start
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True
        loop._batches_that_stepped = trainer.global_step


class Interrupted(SIGTERMException):
    """A run that stopped in good order because of ctrl-C."""


class GracefulStop(L.Callback):
    """On SIGTERM, ctrl-C or a batch system's warning, finishes the step, lets all ranks agree, and saves.

    The warning is SIGUSR1, or the one that SLURM's environment of Lightning names. Where a validation is due after the
    step, it is done first: Lightning would not make up for it in a resumed run. Lightning's own handlers would run
    collectives and save inside the signal handler, in which two ranks crash; its ctrl-C would save in the midst of a
    step, with moments or weights that are half of the next. A second ctrl-C ends the run at once, with the checkpoint
    before.
    """

    def __init__(self) -> None:
        self.asked = False
        self.agreed = False
        self.interrupted = False
        self._speaks = False
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._speaks = trainer.is_global_zero
            environment = getattr(trainer.strategy, "cluster_environment", None)
            warning = getattr(environment, "requeue_signal", None) or signal.SIGUSR1
            # before Lightning looks for handlers, and before workers start, which would die of it
            self._previous[warning] = signal.signal(warning, self._ask)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell has it for what it runs in the background
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            if self._speaks:
                os.write(2, ASKED)  # print may be what the signal interrupted
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
