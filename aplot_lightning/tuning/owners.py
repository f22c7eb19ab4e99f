"""Which process has a trial, and whether it still lives: by machine, process id, and the process's start."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aplot_lightning.tuning.tied import identity


def this_process() -> dict[str, Any]:
    """What tells this process from every other, on this machine and elsewhere: values that JSON can hold."""
    return {
        "host": platform.node(),
        "boot": _boot(),
        "processes": _namespace(),
        "pid": os.getpid(),
        "identity": identity(os.getpid()),
    }


def is_gone(owner: Mapping[str, Any] | None) -> bool:
    """Whether the process has ended, as far as can be told from here.

    Args:
        owner: what `this_process` said in it; None where it ended before it could leave that.

    Returns:
        False also for a process of another machine, or of another container's process numbers.
    """
    if owner is None:
        return True
    here = this_process()
    if owner["host"] != here["host"]:
        return False
    if owner["boot"] != here["boot"]:  # the machine has been started anew
        return True
    return owner["processes"] == here["processes"] and identity(owner["pid"]) != owner["identity"]


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
