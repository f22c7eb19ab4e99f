"""Lightning's Trainer with a clock for saving, and with the faults of machines in one line."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from aplot_lightning.training.faults import told_in_one_line


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
        with told_in_one_line(self):
            super().fit(*arguments, **options)

    def test(self, *arguments: Any, **options: Any) -> Any:
        with told_in_one_line(self):
            return super().test(*arguments, **options)
