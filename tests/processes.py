"""Looking at the processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path


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
