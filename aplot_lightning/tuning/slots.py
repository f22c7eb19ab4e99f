"""Which trials a study still needs, and who has which: every point once, whoever dies, however many share the study.

A study of n trials has n slots: its baselines, and the points of its grid or as many samples. A slot's name is kept
with each trial that was made for it. Trials are only ever given out under a lock that all processes share, after what
the dead have left was put in order; so a process that is killed at any moment loses nothing and doubles nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aplot_lightning.tuning.locks import locked
from aplot_lightning.tuning.owners import is_gone, this_process
from aplot_lightning.tuning.space import same_point
from aplot_lightning.tuning.storage import build_pruner, build_sampler, open_study, without_remarks
from aplot_lightning.tuning.study import TRIALS, StudyConfig

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SLOT, OWNER, FAILURE, STOPPED, DIED = "slot", "owner", "failure", "stopped", "died"  # a trial's user attributes
DEATHS = 5  # children of one slot that die with a signal before that counts as a failure of its own


@dataclass(frozen=True)
class Claim:
    """A trial that this process runs now."""

    number: int
    trial_id: int
    slot: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """How many slots are finished (complete or pruned), have failed for good, run, and are left."""

    finished: int
    failed: int
    running: int
    left: int

    @property
    def is_over(self) -> bool:
        return self.running == self.left == 0


def planned_slots(config: StudyConfig, baselines: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """The slots of a study in the order in which they are tried: name -> point, None where the sampler draws it.

    Args:
        config: the study.
        baselines: the points of its baselines, by name.
    """
    slots: dict[str, dict[str, Any] | None] = {}
    points: list[Mapping[str, Any]] = []
    for name, point in baselines.items():
        if not any(same_point(point, other) for other in points):
            slots[f"baseline:{name}"] = dict(point)
            points.append(point)
    if config.sampler == "grid":
        grid = config.search_space.grid()
        if config.trials is not None:  # a part of it, from everywhere
            random.Random(config.sampler_seed).shuffle(grid)
        for point in grid:
            if not any(same_point(point, other) for other in points):
                slots[f"grid:{json.dumps(point, sort_keys=True)}"] = point
        return dict(list(slots.items())[: config.trials])
    wanted = TRIALS if config.trials is None else config.trials
    slots |= {f"sample:{i}": None for i in range(wanted - len(slots))}
    return dict(list(slots.items())[:wanted])


class Slots:
    """A process's view of a study: takes trials, keeps them alive, and tells how they ended.

    Args:
        config: the study.
        baselines: the points of its baselines, by name.

    Raises:
        UserError, RunError: of `open_study`.
    """

    def __init__(self, config: StudyConfig, baselines: Mapping[str, Mapping[str, Any]]) -> None:
        self.config = config
        self.planned = planned_slots(config, baselines)
        self.study, self.storage = open_study(
            config.location, config.study, direction=config.direction, pruner=build_pruner(config.pruner)
        )
        # only what has failed since counts: who runs the command again has seen to the cause
        self.former_failures = {trial.number for trial in self.trials() if FAILURE in trial.user_attrs}

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def claim(self) -> Claim | None:
        """Takes the next trial, and draws its values; None where none is left that nobody runs."""
        from optuna.trial import TrialState

        with locked(self.config.location, "claim"):
            self.put_in_order()
            waiting = [trial for trial in self.trials() if trial.state is TrialState.WAITING]
            taken = next((trial for trial in waiting if trial.user_attrs.get(SLOT) in self.planned), None)
            if taken is None:
                return None
            trial_id, slot = taken._trial_id, taken.user_attrs[SLOT]
            if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
            self.storage.set_trial_user_attr(trial_id, OWNER, this_process())
            self.keep_alive(trial_id)
            return Claim(taken.number, trial_id, slot, self._draw(trial_id, slot))

    def _draw(self, trial_id: int, slot: str) -> dict[str, Any]:
        """A trial's values; with a seed of its own, they do not depend on which process draws them."""
        import optuna

        config = self.config
        seed = _seed(config.sampler_seed, slot, self._failures(slot))
        with without_remarks():
            sampler = build_sampler(config.sampler, seed, config.search_space.is_conditional)
            # a study object remembers the history for its sampler: a new one for each trial
            study = optuna.load_study(study_name=config.study, storage=self.storage, sampler=sampler)
            return config.search_space.suggest(optuna.trial.Trial(study, trial_id))

    def put_in_order(self) -> None:
        """Fails what the dead have left running, and queues a trial for every slot without one. Under the lock."""
        import optuna
        from optuna.trial import TrialState

        with without_remarks():
            optuna.storages.fail_stale_trials(self.study)  # of other machines: without a heartbeat for too long
        for trial in self.trials():
            if trial.state is TrialState.RUNNING and is_gone(trial.user_attrs.get(OWNER)):
                self._fail(trial._trial_id)
        by_slot = self._by_slot()
        for slot, point in self.planned.items():
            trials = by_slot.get(slot, [])
            if any(trial.state is not TrialState.FAIL for trial in trials) or self._has_failed(slot, trials):
                continue
            # a trial that was stopped by somebody's death is tried again with its own values
            last = trials[-1] if trials else None
            repeated = last is not None and FAILURE not in last.user_attrs and last.params
            values = point if point is not None else (last.params if last is not None and repeated else {})
            self.study.enqueue_trial(values, user_attrs={SLOT: slot})

    def _by_slot(self) -> dict[str, list[FrozenTrial]]:
        found: dict[str, list[FrozenTrial]] = {}
        for trial in self.trials():
            found.setdefault(trial.user_attrs.get(SLOT, ""), []).append(trial)
        return found

    def _has_failed(self, slot: str, trials: Sequence[FrozenTrial]) -> bool:
        """Whether a slot's point is given up: the same values would fail again, while a sampler draws others."""
        last = trials[-1] if trials else None
        recent = last is not None and FAILURE in last.user_attrs and last.number not in self.former_failures
        return recent and self.planned[slot] is not None

    def _failures(self, slot: str) -> int:
        return sum(FAILURE in trial.user_attrs for trial in self._by_slot().get(slot, []))

    def keep_alive(self, trial_id: int) -> None:
        """A sign of life; databases count them."""
        if hasattr(self.storage, "record_heartbeat"):
            self.storage.record_heartbeat(trial_id)

    def finish(self, claim: Claim, value: float | None) -> bool:
        """Tells a trial's value, None for a pruned one; False where it has been taken away in the meantime."""
        from optuna.trial import TrialState

        if value is None:
            return self._ended(claim.trial_id, TrialState.PRUNED, self._last_report(claim.trial_id))
        return self._ended(claim.trial_id, TrialState.COMPLETE, value)

    def fail(self, claim: Claim, reason: str) -> bool:
        """Tells that a trial has failed of itself; the reason stays with it."""
        self._note(claim.trial_id, FAILURE, reason)
        return self._fail(claim.trial_id)

    def release(self, claim: Claim, why: str) -> None:
        """Gives a trial back, unfinished: `stopped` with this process, or its child `died`."""
        self._note(claim.trial_id, why, True)
        self._fail(claim.trial_id)

    def deaths(self, slot: str) -> int:
        """How many children of a slot have died by a signal."""
        return sum(DIED in trial.user_attrs for trial in self._by_slot().get(slot, []))

    def _note(self, trial_id: int, name: str, value: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            self.storage.set_trial_user_attr(trial_id, name, value)
        except UpdateFinishedTrialError:
            return

    def _last_report(self, trial_id: int) -> float | None:
        reports = self.storage.get_trial(trial_id).intermediate_values
        return reports[max(reports)] if reports else None

    def _fail(self, trial_id: int) -> bool:
        from optuna.trial import TrialState

        return self._ended(trial_id, TrialState.FAIL, None)

    def _ended(self, trial_id: int, state: Any, value: float | None) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            return self.storage.set_trial_state_values(trial_id, state, None if value is None else [value])
        except UpdateFinishedTrialError:
            return False

    def progress(self) -> Progress:
        from optuna.trial import TrialState

        done = (TrialState.COMPLETE, TrialState.PRUNED)
        by_slot = self._by_slot()
        counts = dict.fromkeys(("finished", "failed", "running", "left"), 0)
        for slot in self.planned:
            trials = by_slot.get(slot, [])
            states = {trial.state for trial in trials}
            if states & set(done):
                counts["finished"] += 1
            elif TrialState.RUNNING in states:
                counts["running"] += 1
            elif TrialState.WAITING not in states and self._has_failed(slot, trials):
                counts["failed"] += 1
            else:
                counts["left"] += 1
        return Progress(**counts)

    def run_elsewhere(self) -> list[str]:
        """The running trials, each with the process that has it."""
        from optuna.trial import TrialState

        running = [trial for trial in self.trials() if trial.state is TrialState.RUNNING and OWNER in trial.user_attrs]
        owners = {trial.number: trial.user_attrs[OWNER] for trial in running}
        return [f"trial {number} on {owner['host']}, process {owner['pid']}" for number, owner in owners.items()]

    def best(self) -> FrozenTrial | None:
        """The best complete trial so far."""
        from optuna.trial import TrialState

        complete = [trial for trial in self.trials() if trial.state is TrialState.COMPLETE]
        choose = min if self.config.direction == "minimize" else max
        return choose(complete, key=lambda trial: trial.value or 0.0, default=None)

    def failures_in_a_row(self) -> list[FrozenTrial]:
        """The last trials that failed of themselves with none that ended well after them, oldest first."""
        ended = [trial for trial in self.trials() if trial.state.is_finished() and trial.datetime_complete]
        ended.sort(key=lambda trial: trial.datetime_complete or 0)
        row: list[FrozenTrial] = []
        for trial in reversed(ended):
            if trial.state.name in ("COMPLETE", "PRUNED") or trial.number in self.former_failures:
                break
            if FAILURE in trial.user_attrs:
                row.append(trial)
        return row[::-1]


def _seed(seed: int, slot: str, attempt: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {slot} {attempt}".encode()).digest()[:4], "big")
