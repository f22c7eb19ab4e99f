"""Threads and devices of runs at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.machine import environments, spread_devices, visible_devices


def test_cores_and_devices_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environments(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,GPU-7")
    shares = [{"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": named} for named in ("0,GPU-7", "1")]
    assert environments(2) == shares
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments(5)] == ["0", "1", "GPU-7", "0", "1"]


def test_named_devices_are_those(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    named = environments(2, [[2, 3], 0, 1])
    assert named == [{"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": shown} for shown in ("2,3", "0")]
    with pytest.raises(UserError, match="devices: 1 entries for 2 workers; name one for each"):
        spread_devices([0], 2)


def test_devices_are_counted_without_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a driver's tool that lists two of them, one split into parts."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU 0: A (UUID: GPU-1)\\n  MIG 1g: x\\nGPU 1: A (UUID: GPU-2)\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidiactl" or exists(path))
    assert visible_devices() == ["0", "1"]

    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 60)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert visible_devices() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_devices() == []
