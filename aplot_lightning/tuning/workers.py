"""Runs a study's trials, several at a time, until none is left; any number of such processes may share the study.

One process looks after all the children that it has started: it takes trials, starts their runs, keeps them alive in
the storage, and tells how they ended. There is nothing between it and them that could die on its own.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from types import FrameType

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.tuning.launch import Child, Launcher
from aplot_lightning.tuning.machine import spread_devices, threads_of
from aplot_lightning.tuning.slots import DEATHS, DIED, FAILURE, STOPPED, Claim, Slots
from aplot_lightning.tuning.storage import HEARTBEAT
from aplot_lightning.tuning.trial import Outcome, TrialRuns, shortened

LOOK = 0.02  # seconds between two looks at the children
ASK = 2.0  # seconds between two looks for trials that others have lost
FAILURES = 3  # in a row stop the study
STOP_GRACE = 10.0  # seconds that a child has for an orderly end; its trial is begun anew in any case


@dataclass
class Running:
    """A trial with its child: the run of one of its seeds."""

    claim: Claim
    worker: int
    since: float
    child: Child
    seed: int
    values: list[float] = field(default_factory=list)


class Stopped(BaseException):
    """The process was asked to end: SIGTERM or ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Workers:
    """Runs trials.

    Args:
        slots: the study's trials.
        runs: what a trial's run is.
        launcher: starts them.
        say: takes a line for each trial that ended.
    """

    def __init__(self, slots: Slots, runs: TrialRuns, launcher: Launcher, say: Callable[[str], None]) -> None:
        self.slots, self.runs, self.launcher, self.say = slots, runs, launcher, say
        self.config = runs.config
        self.running: dict[int, Running] = {}  # worker -> its trial
        self.devices = spread_devices(self.config.devices, self.config.workers)
        self._asked = 0
        self._told = False

    def run(self) -> None:
        """Runs trials until every slot of the study is finished, by this process or another.

        Raises:
            RunError: three trials in a row failed, or a trial's folder cannot be written.
            Stopped: this process was asked to end; its trials are given back.
        """
        with self._listening():
            try:
                self._run()
            except BaseException:
                self._stop()
                raise

    def _run(self) -> None:
        next_ask = next_sign = 0.0
        while True:
            now = time.monotonic()
            if self._asked:
                raise Stopped(self._asked)
            ended = self._collect()
            if ended:
                self._check_failures()
            if ended or now >= next_ask:
                found = self._hand_out()
                if not found and not self.running:
                    if self.slots.progress().is_over:
                        return
                    self._say_who_runs()
                next_ask = now + ASK
            if now >= next_sign:
                for running in self.running.values():
                    self.slots.keep_alive(running.claim.trial_id)
                next_sign = now + HEARTBEAT
            time.sleep(LOOK)

    def _say_who_runs(self) -> None:
        """Tells once which trials of other processes are waited for."""
        others = self.slots.run_elsewhere()
        if others and not self._told:
            self.say(f"waiting for what other processes run: {', '.join(others)}")
            self._told = True

    def _hand_out(self) -> bool:
        """Gives each idle worker a trial; whether one was found."""
        found = False
        for worker in range(self.config.workers):
            if worker in self.running or self._asked:
                continue
            claim = self.slots.claim()
            if claim is None:
                break
            found = True
            try:
                child = self._start(claim, worker, self.config.first_seed)
            except UserError as error:  # of these values
                self._failed(claim, str(error))
                continue
            except BaseException:
                self.slots.release(claim, STOPPED)
                raise
            self.running[worker] = Running(claim, worker, time.monotonic(), child, self.config.first_seed)
        return found

    def _start(self, claim: Claim, worker: int, seed: int) -> Child:
        words = self.runs.prepare(claim, seed)
        log = self.runs.run_dir(claim, seed) / "log.txt"
        variables = {**self.runs.variables(claim, seed), **self._share_of_machine(worker)}
        return self.launcher.start(words, log=log, environment=variables)

    def _share_of_machine(self, worker: int) -> dict[str, str]:
        variables = {"OMP_NUM_THREADS": str(threads_of(self.config.workers))}
        if self.devices is not None:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.devices[worker]))
        return variables

    def _collect(self) -> bool:
        """Looks after the children that have ended; whether a trial has."""
        ended = False
        for worker, running in list(self.running.items()):
            code = running.child.poll()
            if code is None:
                continue
            del self.running[worker]
            outcome = self.runs.outcome(running.claim, running.seed, code, running.child.log)
            following = self._after(running, outcome)
            if following is not None:
                self.running[worker] = following
            else:
                ended = True
        return ended

    def _after(self, running: Running, outcome: Outcome) -> Running | None:
        """What follows a run: its trial's next seed, or the trial's end."""
        claim = running.claim
        if outcome.died:
            if self.slots.deaths(claim.slot) + 1 < DEATHS:
                self.slots.release(claim, DIED)
                self.say(f"trial {claim.number} was killed and will be tried again (log: {running.child.log})")
            else:
                self._failed(claim, f"killed {DEATHS} times (log: {running.child.log})")
            return None
        if outcome.failure is not None:
            self._failed(claim, outcome.failure)
            return None
        assert outcome.value is not None
        values = [*running.values, outcome.value]
        left = self.config.seed_list[len(values) :]
        if left and not outcome.pruned:
            try:
                child = self._start(claim, running.worker, left[0])
            except BaseException:
                self.slots.release(claim, STOPPED)
                raise
            return Running(claim, running.worker, running.since, child, left[0], values)
        self._finished(claim, None if outcome.pruned else fmean(values), time.monotonic() - running.since)
        return None

    def _finished(self, claim: Claim, value: float | None, seconds: float) -> None:
        if not self.slots.finish(claim, value):
            self.say(f"trial {claim.number} was taken for lost by another process, which runs it again")
            return
        told = "pruned" if value is None else f"{self.config.monitor} {value:.4f}"
        best = self.slots.best()
        so_far = f"; best {best.value:.4f} of trial {best.number}" if best is not None else ""
        self.say(f"trial {claim.number} ({self._count()}): {told} in {seconds:.0f} s, {shown(claim.values)}{so_far}")

    def _failed(self, claim: Claim, reason: str) -> None:
        self.slots.fail(claim, reason)
        self.say(f"trial {claim.number} failed: {shortened(reason)} ({shown(claim.values)}; {self.runs.folder(claim)})")

    def _count(self) -> str:
        return f"{self.slots.progress().finished}/{len(self.slots.planned)}"

    def _check_failures(self) -> None:
        row = self.slots.failures_in_a_row()
        if len(row) >= FAILURES:
            reason = shortened(row[-1].user_attrs[FAILURE])
            raise RunError(
                f"{FAILURES} trials in a row failed, the last, trial {row[-1].number}, with: {reason}; mend that and "
                f"run the same command again (logs: {self.config.folder / 'trials'})"
            )

    def _stop(self) -> None:
        """Ends the children and gives their trials back."""
        running = list(self.running.values())
        self.running.clear()
        if not running:
            return
        with ThreadPoolExecutor(len(running)) as pool:
            list(pool.map(lambda each: each.child.stop(STOP_GRACE), running))
        for each in running:
            self.slots.release(each.claim, STOPPED)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and ctrl-C are noted, and heeded where nothing is half done."""

        def note(number: int, frame: FrameType | None) -> None:
            self._asked = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def shown(values: Mapping[str, object]) -> str:
    """A trial's values on one line; of a config key its last part."""
    return ", ".join(
        f"{name.rpartition('.')[2]} {value:.4g}" if isinstance(value, float) else f"{name.rpartition('.')[2]} {value}"
        for name, value in values.items()
    )
