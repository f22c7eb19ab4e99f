"""Runs child processes, several at a time: the one loop behind `tune` and `compare`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Generic, NoReturn, Protocol, TypeVar

from aplot_lightning.exit_codes import TERMINATED
from aplot_lightning.tuning.processes import Child, Launcher

PULSE = 1.0  # seconds between two calls of `pulse`; the end of a child is handled at once
GRACE = 30.0  # seconds that a child has to save itself when it is asked to stop

Item = TypeVar("Item")


@dataclass
class Job(Generic[Item]):
    """A command to run.

    Attributes:
        item: what the command is for.
        arguments: of `aplot`.
        log: the file for its output.
        environment: variables of its own.
    """

    item: Item
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


class Work(Protocol[Item]):
    """What there is to do: a study's trials, or a comparison's cells."""

    def next_job(self) -> Job[Item] | None:
        """The next command to run, or None if there is none at the moment."""

    def ended(self, job: Job[Item], code: int, seconds: float) -> Job[Item] | None:
        """Records how a command ended. May return a command that follows it in its place."""

    def stopped(self, job: Job[Item], code: int, seconds: float) -> None:
        """Records a command that was stopped because `run_jobs` ends early."""

    def pulse(self) -> bool:
        """Called every second. Returns whether more jobs may come although none runs here."""


class Stopped(BaseException):
    """This process was asked to stop, by SIGTERM or ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class _Running(Generic[Item]):
    job: Job[Item]
    child: Child
    since: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


def run_jobs(work: Work[Item], launcher: Launcher, environments: Sequence[Mapping[str, str]]) -> None:
    """Runs all jobs of `work`, as many at a time as there are environments.

    Any exception, `Stopped` among them, stops the children that run, in parallel, before it leaves.

    Args:
        work: gives the jobs and takes their results.
        launcher: starts them.
        environments: variables for each of the jobs that run at the same time, such as its devices.

    Raises:
        Stopped: on SIGTERM or ctrl-C.
    """
    running: dict[int, _Running[Item]] = {}

    def start(slot: int, job: Job[Item]) -> None:
        variables = {**environments[slot], **job.environment}
        running[slot] = _Running(
            job, launcher.start(job.arguments, log=job.log, environment=variables), time.monotonic()
        )

    with _noted_signals() as asked:
        try:
            while True:
                if asked:
                    raise Stopped(asked[0])
                for slot in range(len(environments)):
                    if slot not in running and (job := work.next_job()) is not None:
                        start(slot, job)
                if not work.pulse() and not running:
                    return
                if running:
                    wait([each.child.ended for each in running.values()], PULSE, FIRST_COMPLETED)
                else:
                    time.sleep(PULSE)
                for slot, each in list(running.items()):
                    if each.child.ended.done():
                        del running[slot]
                        following = work.ended(each.job, each.child.ended.result(), each.seconds)
                        if following is not None:
                            start(slot, following)
        except BaseException:
            _stop(work, list(running.values()))
            raise


def _stop(work: Work[Item], running: Sequence[_Running[Item]]) -> None:
    if not running:
        return
    with ThreadPoolExecutor(len(running)) as pool:
        codes = list(pool.map(lambda each: each.child.stop(GRACE), running))
    for each, code in zip(running, codes, strict=True):
        work.stopped(each.job, code, each.seconds)


@contextmanager
def exit_when_stopped(message: str) -> Iterator[None]:
    """Ends a command that was asked to stop with the exit code of the signal, after a line that says how to resume.

    Raises:
        KeyboardInterrupt: ctrl-C.
        SystemExit: SIGTERM, with code 143.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Stopped as stopped:
        print(message, flush=True)  # noqa: T201
        raise (KeyboardInterrupt if stopped.number == signal.SIGINT else SystemExit(TERMINATED)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """SIGTERM and ctrl-C are appended to the list instead of interrupting the loop in the middle of a step."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
