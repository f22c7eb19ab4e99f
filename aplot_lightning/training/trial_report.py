"""A run that is a trial of a study: it reports its validations to the study, which may stop it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import lightning as L

from aplot_lightning.errors import LostRankError
from aplot_lightning.evaluation.monitor import direction
from aplot_lightning.files import write_text
from aplot_lightning.tuning.storage import (
    FAILURE_FILE,
    TRIAL_VARIABLE,
    VALUE_FILE,
    build_pruner,
    open_study,
    storage_errors,
)


class TrialReport(L.Callback):
    """Reports `monitor` after each validation, and stops the run if the study's pruner says so.

    The first rank reports to the study and broadcasts the decision. At the end it writes `value.json` into the run
    directory: {"monitor", "value": best over the validations or null, "values": {step: value}, "pruned"}.

    Args:
        run_dir: the run directory.
        monitor: the metric.
        trial: the storage's location, the study's name, direction and pruner, the trial's number, and whether it
            reports (else it only writes its value).

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
        """The report of the trial that this process runs; None if it runs none."""
        trial = os.environ.get(TRIAL_VARIABLE)
        return cls(run_dir, monitor, json.loads(trial)) if trial else None

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
        # after the last validation the run has ended anyway
        stop = stop and trainer.global_step < trainer.estimated_stepping_batches
        self.pruned = trainer.strategy.broadcast(stop)
        if self.pruned:
            trainer.should_stop = True

    def _report(self, value: float) -> bool:
        """Adds the value to the trial. Returns whether the pruner would stop it."""
        with storage_errors(self.trial["location"]):
            study = self._storage.get_study_id_from_name(self.trial["study"])
            number = self._storage.get_trial_id_from_study_id_trial_number(study, self.trial["number"])
            # counted, so that runs with other batch sizes are compared at the same place
            self._storage.set_trial_intermediate_value(number, len(self.values), value)
            return bool(self._study.pruner.prune(self._study, self._storage.get_trial(number)))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        finite = [value for value in self.values.values() if math.isfinite(value)]
        best = min if direction(self.monitor) == "minimize" else max
        result = {
            "monitor": self.monitor,
            "value": best(finite) if finite else None,
            "values": self.values,
            "pruned": self.pruned,
        }
        write_text(self.run_dir / VALUE_FILE, json.dumps(result) + "\n")


def record_failure(run_dir: Path, error: BaseException) -> None:
    """Writes why the run of a trial failed: Lightning kills the first rank if another one fails, for any reason.

    A rank that failed counts more than one that lost another rank.
    """
    path, lost = run_dir / FAILURE_FILE, isinstance(error, LostRankError)
    if run_dir.is_dir() and not (lost and path.exists()):
        write_text(path, json.dumps({"lost_rank": lost}) + "\n")
