"""Lightning's Trainer with a clock for saving, and with the faults of machines in one line."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L

from aplot_lightning.training.faults import told_in_one_line


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Puts back the signal handlers of before.

    After an error Lightning restores those that its callbacks had set, and after ctrl-C it leaves that ignored.
    """
    kept = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in kept}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it is not Python's
                signal.signal(number, handler)


class RunTrainer(L.Trainer):
    """The Trainer of the command line; its arguments are Lightning's own.

    Attributes:
        saving_seconds: spent on checkpoints so far, from gathering the weights to the last rank's return.
    """

    saving_seconds = 0.0

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        start = time.perf_counter()
        super().save_checkpoint(*arguments, **options)
        self.saving_seconds += time.perf_counter() - start

    def fit(self, *arguments: Any, **options: Any) -> None:
        with told_in_one_line(self), _handlers_kept():
            super().fit(*arguments, **options)

    def test(self, *arguments: Any, **options: Any) -> Any:
        with told_in_one_line(self):
            return super().test(*arguments, **options)
