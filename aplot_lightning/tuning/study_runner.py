"""Runs a study's trials until none is left; any number of processes may share the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.tuning.machine import environments
from aplot_lightning.tuning.processes import Launcher
from aplot_lightning.tuning.scheduler import Job, run_jobs
from aplot_lightning.tuning.trial import TrialRuns, shortened
from aplot_lightning.tuning.trial_queue import FAILURE, MAX_DEATHS, Claim, TrialQueue

MAX_FAILURES = 3  # in a row stop the study


@dataclass
class TrialRun:
    """The run of one seed of a trial.

    Attributes:
        claim: the trial.
        seed: of this run.
        values: of the trial's seeds before it.
        seconds: that they took.
    """

    claim: Claim
    seed: int
    values: list[float] = field(default_factory=list)
    seconds: float = 0.0


class StudyRunner:
    """Hands a study's trials to the scheduler and records their results.

    Args:
        queue: the study's trials.
        runs: what the run of a trial is.
        log: takes one line for each trial that ended.
    """

    def __init__(self, queue: TrialQueue, runs: TrialRuns, log: Callable[[str], None]) -> None:
        self.queue, self.runs, self.log = queue, runs, log
        self.config = runs.config
        self.claims: list[Claim] = []  # of this process
        self._told_who_runs = False

    def run(self, launcher: Launcher) -> None:
        """Runs trials until every slot of the study is finished, by this process or another.

        Raises:
            RunError: three trials in a row failed, or a trial's folder cannot be written.
            Stopped: this process was asked to stop; its trials are queued again.
        """
        try:
            run_jobs(self, launcher, environments(self.config.workers, self.config.devices))
        finally:
            for claim in list(self.claims):  # taken, but an error came before their run started
                self._give_back(claim)
            self.queue.close()

    def next_job(self) -> Job[TrialRun] | None:
        while (claim := self.queue.claim()) is not None:
            self.claims.append(claim)
            try:
                return self._job(TrialRun(claim, self.config.first_seed))
            except UserError as error:  # an expression that cannot be evaluated at these values
                self._failed(claim, str(error))
        return None

    def _job(self, run: TrialRun) -> Job[TrialRun]:
        arguments = self.runs.prepare(run.claim, run.seed)
        log = self.runs.run_dir(run.claim, run.seed) / "log.txt"
        return Job(run, arguments, log, self.runs.environment(run.claim, run.seed))

    def ended(self, job: Job[TrialRun], code: int, seconds: float) -> Job[TrialRun] | None:
        run = job.item
        outcome = self.runs.outcome(run.claim, run.seed, code, job.log)
        if outcome.died:
            self._died(run.claim, job)
        elif outcome.failure is not None:
            self._failed(run.claim, outcome.failure)
        else:
            assert outcome.value is not None
            values, seconds = [*run.values, outcome.value], run.seconds + seconds
            left = self.config.seed_list[len(values) :]
            if left and not outcome.pruned:
                return self._job(TrialRun(run.claim, left[0], values, seconds))
            self._finished(run.claim, None if outcome.pruned else fmean(values), seconds)
        return None

    def stopped(self, job: Job[TrialRun], code: int, seconds: float) -> None:
        self._give_back(job.item.claim)

    def pulse(self) -> bool:
        self.queue.keep_alive(self.claims)
        if self.claims:
            return True
        if self.queue.progress().is_over:
            return False
        elsewhere = self.queue.running_elsewhere()
        if elsewhere and not self._told_who_runs:
            self.log(f"waiting for trials of other processes: {', '.join(elsewhere)}")
            self._told_who_runs = True
        return True

    def _give_back(self, claim: Claim, *, died: bool = False) -> None:
        self.claims.remove(claim)
        self.queue.give_back(claim, died=died)

    def _died(self, claim: Claim, job: Job[TrialRun]) -> None:
        if self.queue.deaths(claim) + 1 < MAX_DEATHS:
            self._give_back(claim, died=True)
            self.log(f"trial {claim.number} was killed and will be tried again (log: {job.log})")
        else:
            self._failed(claim, f"killed {MAX_DEATHS} times (log: {job.log})")

    def _finished(self, claim: Claim, value: float | None, seconds: float) -> None:
        self.claims.remove(claim)
        if not self.queue.finish(claim, value):
            self.log(f"trial {claim.number} was taken over by another process, which runs it again")
            return
        result = "pruned" if value is None else f"{self.config.monitor} {value:.4f}"
        best = self.queue.best()
        so_far = f"; best {best.value:.4f} of trial {best.number}" if best is not None else ""
        count = f"{self.queue.progress().finished}/{len(self.queue.planned)}"
        self.log(f"trial {claim.number} ({count}): {result} in {seconds:.0f} s, {shown(claim.values)}{so_far}")

    def _failed(self, claim: Claim, reason: str) -> None:
        self.claims.remove(claim)
        self.queue.fail(claim, reason)
        self.log(f"trial {claim.number} failed: {shortened(reason)} ({shown(claim.values)}; {self.runs.folder(claim)})")
        row = self.queue.failures_in_a_row()
        if len(row) >= MAX_FAILURES:
            last = row[-1]
            raise RunError(
                f"{MAX_FAILURES} trials in a row failed, the last, trial {last.number}, with: "
                f"{shortened(last.user_attrs[FAILURE])}; fix that and run the same command again (logs: "
                f"{self.config.folder / 'trials'})"
            )


def shown(values: Mapping[str, object]) -> str:
    """A trial's values on one line, config keys by their last part."""
    return ", ".join(
        f"{name.rpartition('.')[2]} {value:.4g}" if isinstance(value, float) else f"{name.rpartition('.')[2]} {value}"
        for name, value in values.items()
    )
