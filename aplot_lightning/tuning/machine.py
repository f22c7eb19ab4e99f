"""A machine shared out among runs at once: threads and CUDA devices of each, without loading a CUDA library."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from aplot_lightning.errors import UserError


def environments(workers: int, devices: Sequence[int | list[int]] | None = None) -> list[dict[str, str]]:
    """Variables for each of the runs at once, so that they do not crowd one another out.

    Args:
        workers: runs at once.
        devices: CUDA devices of each; by default all that there are, spread evenly.

    Raises:
        UserError: fewer entries of devices than workers.
    """
    shares = spread_devices(devices, workers)
    return [
        {
            "OMP_NUM_THREADS": str(threads_of(workers)),
            **({"CUDA_VISIBLE_DEVICES": ",".join(map(str, shares[place]))} if shares else {}),
        }
        for place in range(workers)
    ]


def threads_of(workers: int) -> int:
    """CPU threads of each worker: its share of the cores, or what OMP_NUM_THREADS says."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def spread_devices(devices: Sequence[int | list[int]] | None, workers: int) -> list[list[int | str]] | None:
    """The CUDA devices of each worker: as named, or all that there are, spread evenly; None where there are none.

    Raises UserError where the devices do not suffice for the workers.
    """
    if devices is None:
        there = visible_devices()
        if not there:
            return None
        return [list(there[worker::workers]) or [there[worker % len(there)]] for worker in range(workers)]
    if len(devices) < workers:
        raise UserError(f"devices: {len(devices)} entries for {workers} workers; name one for each")
    return [list(entry) if isinstance(entry, list) else [entry] for entry in devices[:workers]]


def visible_devices() -> list[str]:
    """The CUDA devices that this process may use, by number or name."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [device.strip() for device in told.split(",") if device.strip() not in ("", "-1")]
    if not Path("/dev/nvidiactl").exists():
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(place) for place, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]
