"""Runs as child processes: started with a log of their own, ended with all that they started, never left behind.

    with open_launcher() as launcher:
        child = launcher.start(["fit", "--config", "base.yaml", "--run_dir", "runs/0"], log=Path("runs/0.log"))
        code = child.wait()

Every process of a child, each rank and worker too, is gone a moment after this process, even when that is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aplot_lightning.tuning import tied

PROGRAM = (sys.executable, "-m", "aplot_lightning")
WAIT = 0.02  # seconds between two looks at a child
# what a launcher of ranks tells its own processes: a child is no rank of the run that this process may belong to
RANK_VARIABLES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID"),
    "APLOT_RUN_DIR",
}


class Child(ABC):
    """A started run.

    Attributes:
        pid: its first process, which leads the process group of the others.
        log: the file with all that it says.
    """

    pid: int
    log: Path

    @abstractmethod
    def poll(self) -> int | None:
        """The exit code, the negative number of the signal that killed it, or None while it runs.

        Nothing of it is left when this tells a code.
        """

    @abstractmethod
    def signal(self, number: int) -> None:
        """Sends a signal to all of its process group; does nothing when it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """`poll` of the ended run. Raises TimeoutError where it still runs after so many seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"process {self.pid} still runs")
            time.sleep(WAIT)
        return code

    def stop(self, grace: float = 30) -> int:
        """Ends it: SIGTERM, on which a run saves itself, and SIGKILL after so many seconds. Returns the exit code."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            return self.wait(grace)
        self.signal(signal.SIGKILL)
        return self.wait()


class Launcher(ABC):
    """Starts runs; its end is the end of those that still run."""

    @abstractmethod
    def start(self, words: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> Child:
        """Starts ``python -m aplot_lightning`` in this working directory.

        Args:
            words: what stands behind that on the command line.
            log: what it says is added to this file; its folder is made.
            environment: variables beside, or in place of, those of this process.
        """

    @abstractmethod
    def close(self) -> None:
        """Kills the children that still run; `Child.stop` before it is gentler."""

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_launcher(*, preload: bool = False) -> Launcher:
    """A launcher of new processes.

    Args:
        preload: children are forked from a process that has imported everything, which saves their first seconds.
    """
    if preload:
        from aplot_lightning.tuning.preloaded import PreloadedLauncher

        return PreloadedLauncher()
    return PlainLauncher()


class PlainLauncher(Launcher):
    """Starts every child as a program of its own.

    Args:
        program: what the words are given to.
        keep: file descriptors that children are handed.
    """

    def __init__(self, program: Sequence[str] = PROGRAM, keep: Sequence[int] = ()) -> None:
        self.program = list(program)
        self.keep = tuple(keep)
        self._children: list[PlainChild] = []
        # the kernel takes the end of the thread that started a child for its parent's death: one that stays
        self._starter = ThreadPoolExecutor(1, "launcher")

    def start(self, words: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> PlainChild:
        variables = {**inherited(), **(environment or {})}
        child = self._starter.submit(PlainChild, [*self.program, *words], log, variables, self.keep).result()
        self._children.append(child)
        return child

    def close(self) -> None:
        for child in self._children:
            child.signal(signal.SIGKILL)
        for child in self._children:
            child.wait()
        self._starter.shutdown()


class PlainChild(Child):
    """A program in a process group of its own, tied to this process."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], keep: Sequence[int]) -> None:
        self.log = log
        self._lock = threading.Lock()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*TIED, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=keep,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        with self._lock:
            if self._process.returncode is None and has_ended(self.pid):
                signal_group(self.pid, signal.SIGKILL)  # ranks and workers that outlive the first process
                self._process.wait()
            return self._process.returncode

    def signal(self, number: int) -> None:
        with self._lock:
            if self._process.returncode is None:  # not waited for, so the id is still its own
                signal_group(self.pid, number)


# an isolated interpreter without site packages is there in 15 ms
TIED = [sys.executable, "-I", "-S", tied.__file__]


def inherited() -> dict[str, str]:
    """The environment of children: this process's, without what its own launcher told it, and with its name."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in RANK_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
    return {**kept, tied.VARIABLE: tied.identity(os.getpid()) or ""}


def has_ended(leader: int) -> bool:
    """Whether a process of this one has ended; it is left to be waited for, so that its id stays its own."""
    return os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def signal_group(leader: int, number: int) -> None:
    """Sends a signal to the process group of a leader that nobody has waited for yet."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
