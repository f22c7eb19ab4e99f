"""Which trials a study still needs, on Optuna's ask and tell. Any number of processes may share the study.

A study of n trials has n slots: its baselines, and the points of its grid or as many samples. Each trial carries the
name of its slot. A slot is finished when one of its trials is complete or pruned, so every grid point counts once,
whatever was killed in between. A trial whose process died is queued again with the same values:

- on a machine that sees the study's folder, as soon as any process of the study looks. Each process holds a lock in
  ``FOLDER/workers`` while it lives;
- elsewhere when its heartbeat is older than `storage.GRACE`. Only databases have heartbeats.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from aplot_lightning.errors import UserError
from aplot_lightning.files import locked, try_lock
from aplot_lightning.tuning import storage as storage_module
from aplot_lightning.tuning.space import same_point
from aplot_lightning.tuning.storage import build_pruner, build_sampler, open_study, without_warnings
from aplot_lightning.tuning.study import TRIALS, StudyConfig

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

# user attributes of a trial
SLOT = "slot"
WORKER = "worker"  # the process that runs it
FAILURE = "failure"  # why it failed, where the trial itself is at fault
DEATHS = "deaths"  # how many trials of this slot were killed before it
MAX_DEATHS = 5  # this many kills in a row count as a failure of the trial itself
IDENTITY = "identity"  # user attribute of the study


@dataclass(frozen=True)
class Claim:
    """A trial that this process runs.

    Attributes:
        number: of the trial.
        slot: its slot.
        values: of the space's parameters.
        trial: Optuna's own object.
    """

    number: int
    slot: str
    values: Mapping[str, Any]
    trial: Any = None


@dataclass(frozen=True)
class Progress:
    """How many slots are finished (complete or pruned), failed, running, and left."""

    finished: int
    failed: int
    running: int
    left: int

    @property
    def is_over(self) -> bool:
        return self.running == self.left == 0


def planned_slots(config: StudyConfig, baselines: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """The slots of a study in the order in which they are tried: name -> point, None if the sampler draws it.

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
        if config.trials is not None:  # a random part of the grid
            random.Random(config.sampler_seed).shuffle(grid)
        for point in grid:
            if not any(same_point(point, other) for other in points):
                slots[f"grid:{json.dumps(point, sort_keys=True)}"] = point
        return dict(list(slots.items())[: config.trials])
    wanted = TRIALS if config.trials is None else config.trials
    slots |= {f"sample:{i}": None for i in range(wanted - len(slots))}
    return dict(list(slots.items())[:wanted])


class TrialQueue:
    """One process's view of a study: takes trials and records how they ended.

    Args:
        config: the study.
        baselines: the points of its baselines, by name.

    Raises:
        UserError, RunError: see `open_study`.
    """

    def __init__(self, config: StudyConfig, baselines: Mapping[str, Mapping[str, Any]]) -> None:
        self.config = config
        self.planned = planned_slots(config, baselines)
        self.study, self.storage = open_study(
            config.location,
            config.study,
            direction=config.direction,
            pruner=build_pruner(config.pruner),
            requeue=self._queue_again,
        )
        self.worker = {"host": platform.node(), "pid": os.getpid(), "lock": f"{uuid.uuid4().hex}.lock"}
        self._lock: Any = None
        self._next_heartbeat = 0.0
        # failures of an earlier command do not count: its user has fixed the cause
        self.former_failures = {trial.number for trial in self.trials() if FAILURE in trial.user_attrs}

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    # Taking trials

    def claim(self) -> Claim | None:
        """Takes the next trial and draws its values. Returns None if no unclaimed trial remains."""
        self._hold_lock()
        with locked(self.config.folder / "claim.lock"):  # SQLite lets two processes take one waiting trial
            self.recover()
            return self._claim()

    def _claim(self) -> Claim | None:
        import optuna

        while (slot := self._next_slot()) is not None:
            with without_warnings():
                # the seed depends on the slot alone, so that the values do not depend on which process draws them
                seed = _seed(self.config.sampler_seed, slot, self._failures(slot))
                sampler = build_sampler(self.config.sampler, seed, self.config.search_space.is_conditional)
                study = optuna.load_study(study_name=self.config.study, storage=self.storage, sampler=sampler)
                trial = study.ask()
            taken = trial.user_attrs.get(SLOT)  # another process may have taken the one that was meant
            if taken not in self.planned or self._is_duplicate(trial.number, taken):
                self._tell(trial.number, failed=True)
                continue
            trial.set_user_attr(WORKER, self.worker)
            claim = Claim(trial.number, taken, self.config.search_space.suggest(trial), trial)
            self.keep_alive([claim], at_once=True)
            return claim
        return None

    def _next_slot(self) -> str | None:
        """The slot of the trial that `ask` will give out next; queues one if none waits."""
        from optuna.trial import TrialState

        waiting = [trial for trial in self.trials() if trial.state is TrialState.WAITING]
        if waiting:
            return str(waiting[0].user_attrs.get(SLOT))
        by_slot = self._by_slot()
        for slot, point in self.planned.items():
            trials = by_slot.get(slot, [])
            if all(trial.state is TrialState.FAIL for trial in trials) and not self._has_failed(slot, trials):
                self.study.enqueue_trial(point or {}, user_attrs={SLOT: slot})
                return slot
        return None

    def _is_duplicate(self, number: int, slot: str) -> bool:
        """Whether an earlier trial of the slot runs, waits or is finished: two machines may queue a slot at once."""
        from optuna.trial import TrialState

        return any(
            trial.number < number and trial.state is not TrialState.FAIL for trial in self._by_slot().get(slot, [])
        )

    def _by_slot(self) -> dict[str, list[FrozenTrial]]:
        found: dict[str, list[FrozenTrial]] = {}
        for trial in self.trials():
            found.setdefault(trial.user_attrs.get(SLOT, ""), []).append(trial)
        return found

    def _has_failed(self, slot: str, trials: Sequence[FrozenTrial]) -> bool:
        """Whether a slot is given up: its fixed values would fail again, while a sampler draws others."""
        recent = any(FAILURE in trial.user_attrs and trial.number not in self.former_failures for trial in trials)
        return recent and self.planned[slot] is not None

    def _failures(self, slot: str) -> int:
        return sum(FAILURE in trial.user_attrs for trial in self._by_slot().get(slot, []))

    # Trials of dead processes

    def recover(self) -> None:
        """Fails the trials whose processes died, and queues them again with the same values."""
        import optuna
        from optuna.trial import TrialState

        with without_warnings():
            optuna.storages.fail_stale_trials(self.study)  # by their heartbeats
        for trial in self.trials():
            if trial.state is TrialState.RUNNING and self._is_dead(trial) and self._tell(trial.number, failed=True):
                self._queue_again(self.study, trial)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if worker is None:  # its process died, or is about to write its name
            patience = timedelta(seconds=storage_module.GRACE)
            return trial.datetime_start is None or datetime.now() - trial.datetime_start > patience
        path = self.config.folder / "workers" / worker["lock"]
        if worker == self.worker or not path.exists():
            return False
        with suppress(OSError, NotImplementedError):  # a file system without locks
            lock = try_lock(path)
            if lock is not None:
                lock.release()
                return True
        return False

    def _queue_again(self, study: optuna.Study, trial: FrozenTrial) -> None:
        kept = {name: trial.user_attrs[name] for name in (SLOT, DEATHS) if name in trial.user_attrs}
        study.enqueue_trial(trial.params, user_attrs=kept)

    def _hold_lock(self) -> None:
        """Shows other processes that this one lives."""
        if self._lock is None:
            path = self.config.folder / "workers" / str(self.worker["lock"])
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError, NotImplementedError):
                self._lock = try_lock(path)

    def close(self) -> None:
        """Gives up this process's lock."""
        if self._lock is not None:
            self._lock.release()
            (self.config.folder / "workers" / str(self.worker["lock"])).unlink(missing_ok=True)
            self._lock = None

    def keep_alive(self, claims: Sequence[Claim], *, at_once: bool = False) -> None:
        """Records a heartbeat of each claim, in databases, if one is due or `at_once`."""
        if not hasattr(self.storage, "record_heartbeat") or not (at_once or time.monotonic() >= self._next_heartbeat):
            return
        study_id = self.storage.get_study_id_from_name(self.config.study)
        for claim in claims:
            self.storage.record_heartbeat(self.storage.get_trial_id_from_study_id_trial_number(study_id, claim.number))
        self._next_heartbeat = time.monotonic() + storage_module.HEARTBEAT

    # Results

    def finish(self, claim: Claim, value: float | None) -> bool:
        """Records a trial's value, None for a pruned one. Returns False if another process took the trial over."""
        return self._tell(claim.number, value=value)

    def fail(self, claim: Claim, reason: str) -> bool:
        """Records that a trial failed and why."""
        self._note(claim, FAILURE, reason)
        return self._tell(claim.number, failed=True)

    def give_back(self, claim: Claim, *, died: bool = False) -> None:
        """Queues a trial again that was stopped with this process, or whose child was killed (`died`)."""
        if died:
            self._note(claim, DEATHS, self.deaths(claim) + 1)
        if self._tell(claim.number, failed=True):
            self._queue_again(self.study, self.study.get_trials(deepcopy=False)[claim.number])

    def deaths(self, claim: Claim) -> int:
        """How many children of this trial's slot were killed in a row."""
        return int(claim.trial.user_attrs.get(DEATHS, 0))

    def _note(self, claim: Claim, name: str, value: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        with suppress(UpdateFinishedTrialError):
            claim.trial.set_user_attr(name, value)

    def _tell(self, number: int, *, value: float | None = None, failed: bool = False) -> bool:
        """Ends a trial: complete with a value, pruned without, or failed. Returns False if it has ended already."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        state = TrialState.FAIL if failed else TrialState.PRUNED if value is None else None
        try:
            self.study.tell(number, value, state=state)
        except (UpdateFinishedTrialError, ValueError):  # ValueError: Optuna refuses to tell a finished trial
            if not self.study.get_trials(deepcopy=False)[number].state.is_finished():
                raise
            return False
        return True

    # What there is

    def progress(self) -> Progress:
        from optuna.trial import TrialState

        done = {TrialState.COMPLETE, TrialState.PRUNED}
        by_slot = self._by_slot()
        counts = dict.fromkeys(("finished", "failed", "running", "left"), 0)
        for slot in self.planned:
            trials = by_slot.get(slot, [])
            states = {trial.state for trial in trials}
            if states & done:
                counts["finished"] += 1
            elif TrialState.RUNNING in states:
                counts["running"] += 1
            elif TrialState.WAITING not in states and self._has_failed(slot, trials):
                counts["failed"] += 1
            else:
                counts["left"] += 1
        return Progress(**counts)

    def running_elsewhere(self) -> list[str]:
        """The running trials, each with the process that runs it."""
        from optuna.trial import TrialState

        workers = {
            trial.number: trial.user_attrs[WORKER]
            for trial in self.trials()
            if trial.state is TrialState.RUNNING and WORKER in trial.user_attrs
        }
        return [f"trial {number} on {who['host']}, process {who['pid']}" for number, who in workers.items()]

    def best(self) -> FrozenTrial | None:
        """The best complete trial so far."""
        from optuna.trial import TrialState

        complete = [trial for trial in self.trials() if trial.state is TrialState.COMPLETE]
        choose = min if self.config.direction == "minimize" else max
        return choose(complete, key=lambda trial: trial.value or 0.0, default=None)

    def failures_in_a_row(self) -> list[FrozenTrial]:
        """The last trials that failed, oldest first, without a complete or pruned one after them."""
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


def check_same_study(config: StudyConfig, study: optuna.Study, base: Mapping[str, Any]) -> None:
    """Stores in a new study what its values depend on. Raises UserError if an existing one depends on something else.

    Args:
        config: the study; the number of trials, the sampler and the pruner may change.
        study: of this name, in the storage.
        base: the whole config that its trials start from.
    """
    mine = json.loads(json.dumps({**config.identity(), "base": base}, default=str))  # as the storage keeps it
    theirs = study.user_attrs.get(IDENTITY)
    if theirs is None:
        study.set_user_attr(IDENTITY, mine)
        return
    difference = _difference(theirs, mine)
    if difference:
        raise UserError(
            f"study: {config.study!r} exists already and differs in {difference}; give this one another name or "
            "another storage"
        )


def _difference(one: Any, other: Any, key: str = "") -> str | None:
    """The first key in which two configs differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*one, *other]):
            inner = f"{key}.{name}" if key else str(name)
            found = _difference(one[name], other[name], inner) if name in one and name in other else inner
            if found:
                return found
        return None
    return None if one == other else key
