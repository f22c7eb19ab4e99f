"""Starting commands as forked processes, waiting for them, and looking at the processes of this machine."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path


def forked(words: list[str], log: Path) -> int:
    """A command of `aplot` as a forked process, which has everything imported already; its id. The log takes output."""
    process = os.fork()
    if process:
        return process
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from aplot_lightning.cli import main

    sys.argv = ["aplot", *words]
    code = 70
    try:
        code = main(words)
    except BaseException:  # told in the log, which the tests show
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: int, seconds: float) -> int | None:
    """The exit status of a forked process, waited for so long at most."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def living(mark: Mapping[str, str]) -> list[int]:
    """Ids of the processes that were started with these variables and are no zombies."""
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
    """Returns as soon as it holds; fails where it does not hold in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.02)
