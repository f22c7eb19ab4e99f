"""Forks commands, waits for them, and looks at the processes of this machine."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path


def forked(arguments: list[str], log: Path) -> int:
    """Runs a command of `aplot` in a fork of this process, which must have few threads. Returns the process id.

    Args:
        arguments: of the command line.
        log: the file that stdout and stderr are appended to.
    """
    process = os.fork()
    if process:
        return process
    run_command(arguments, log)
    return 0


def run_command(arguments: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Runs a command of `aplot` with its output in `log`, and ends this process with the exit code."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    code = 70
    try:
        os.environ.update(environment or {})
        import torch

        from aplot_lightning.cli import main

        torch.set_num_threads(1)
        sys.argv = ["aplot", *arguments]
        code = main(arguments)
    except BaseException:
        traceback.print_exc()  # for the test's message
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int, seconds: float) -> int | None:
    """The exit code of a forked process, negative after a signal, or None if it still runs after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def living(mark: Mapping[str, str]) -> list[int]:
    """Ids of the processes, except zombies, that were started with these environment variables."""
    wanted = {f"{name}={value}".encode() for name, value in mark.items()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            if state not in "ZX" and wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until `holds` returns True, and fails after `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.02)
