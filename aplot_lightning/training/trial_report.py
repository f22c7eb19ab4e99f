"""A run that is a trial of a study: its validations go to the study, which may stop it, and its value stays with it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import lightning as L

from aplot_lightning.training.checkpointing import LOWER_IS_BETTER
from aplot_lightning.tuning.storage import build_pruner, open_study, told_in_one_line

VARIABLE = "APLOT_TRIAL"  # set by tuning/trial.py
FILE = "value.json"


class TrialReport(L.Callback):
    """Reports `monitor` after each validation, and stops the run where the study's pruner says so.

    The first rank speaks to the study, and tells the others what it decides. At the end it leaves `value.json` in the
    run directory: {"monitor", "value": best over the validations or null, "values": {step: value}, "pruned"}.

    Args:
        run_dir: the run directory.
        monitor: the metric.
        trial: the storage's location, the study's name, direction and pruner, the trial's number, and whether it
            reports (else it only leaves its value).

    Attributes:
        pruned: whether the study has stopped it.
    """

    def __init__(self, run_dir: Path, monitor: str, trial: dict[str, Any]) -> None:
        self.run_dir, self.monitor, self.trial = run_dir, monitor, trial
        self.pruned = False
        self.values: dict[int, float] = {}
        self._study: Any = None

    @classmethod
    def from_environment(cls, run_dir: Path, monitor: str) -> TrialReport | None:
        """That of the trial which this process runs, None where it runs none."""
        told = os.environ.get(VARIABLE)
        return cls(run_dir, monitor, json.loads(told)) if told else None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.trial["report"]:
            trial = self.trial
            self._study, self._storage = open_study(
                trial["location"],
                trial["study"],
                direction=trial["direction"],
                pruner=build_pruner(trial["pruner"]),
            )

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.state.fn != "fit" or trainer.sanity_checking or value is None:
            return
        self.values[trainer.global_step] = float(value)
        stop = self._report(float(value)) if self._study is not None else False
        # the last validation is of a run that has ended anyway
        stop = stop and trainer.global_step < trainer.estimated_stepping_batches
        self.pruned = trainer.strategy.broadcast(stop)
        if self.pruned:
            trainer.should_stop = True

    def _report(self, value: float) -> bool:
        """Adds the value to the trial; whether the pruner would stop it."""
        with told_in_one_line(self.trial["location"]):
            study = self._storage.get_study_id_from_name(self.trial["study"])
            number = self._storage.get_trial_id_from_study_id_trial_number(study, self.trial["number"])
            # counted, so that runs with other batch sizes are compared at the same place
            self._storage.set_trial_intermediate_value(number, len(self.values), value)
            return bool(self._study.pruner.prune(self._study, self._storage.get_trial(number)))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        finite = [value for value in self.values.values() if math.isfinite(value)]
        best = min if self.monitor.rpartition("/")[2] in LOWER_IS_BETTER else max
        told = {
            "monitor": self.monitor,
            "value": best(finite) if finite else None,
            "values": self.values,
            "pruned": self.pruned,
        }
        part = self.run_dir / f".{FILE}.part"
        part.write_text(json.dumps(told) + "\n", encoding="utf-8")
        part.replace(self.run_dir / FILE)
