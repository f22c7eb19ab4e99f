"""The most memory that training took."""

from __future__ import annotations

import re
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_memory_mib(device: torch.device) -> float | None:
    """The most that this process has held so far, in MiB: tensors on a CUDA device, or else its resident memory.

    None on a CPU whose system does not say (only Linux does). getrusage's ru_maxrss would be at hand elsewhere too, but
    a program begins with that of the process that started it: a small run in a large study would look large.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu" or not STATUS.is_file():
        return None
    kibibytes = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="utf-8", errors="replace"))
    return int(kibibytes[1]) / 1024 if kibibytes else None
