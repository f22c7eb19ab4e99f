"""Processes that die with the one they were started for, however it ends.

A variable names the process that each belongs to. The kernel is asked for SIGKILL at the death of the direct parent
(``PR_SET_PDEATHSIG``), and asked again in every process further down, since no process inherits the wish: ranks that
Lightning or torchrun start, loaders' workers, helpers that prepare data. Linux only; elsewhere nothing is tied.

As a script, ``python tied.py PROGRAM ...`` is tied before it turns into the program. Standard library only: this runs
before everything else.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

VARIABLE = "APLOT_CHILD_OF"  # the process that this one belongs to: its id and when it was started
PR_SET_PDEATHSIG = 1
GONE = 143
_tied = 0  # the id of the process that has seen to its forks


def identity(process: int) -> str | None:
    """Id and start time of a process, which no later process shares; None where it is dead, or on no Linux."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{process} {fields[19]}"


def tie_to_starter() -> None:
    """Ties this process, and all that it will start, to its parent; ends it where the named process is gone.

    Does nothing where no process is named: only launchers name one. A second call does nothing.
    """
    global _tied
    named = os.environ.get(VARIABLE)
    if not named or sys.platform != "linux" or _tied == os.getpid():
        return
    _die_with_parent()
    if identity(int(named.split()[0])) != named:  # it ended before the kernel was told
        os._exit(GONE)
    if not _tied:
        os.register_at_fork(after_in_child=_after_fork)
    _tied = os.getpid()
    os.environ[VARIABLE] = identity(_tied) or named


def _after_fork() -> None:
    """Of a process that a tied one forks, which belongs to the tied one."""
    global _tied
    _die_with_parent()
    if os.getppid() != _tied:
        os._exit(GONE)
    _tied = os.getpid()


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    _die_with_parent()
    starter = os.environ[VARIABLE]
    if identity(int(starter.split()[0])) != starter:
        os._exit(GONE)
    os.execvp(sys.argv[1], sys.argv[1:])
