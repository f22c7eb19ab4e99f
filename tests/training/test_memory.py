"""Peak memory, against a process that holds a known amount."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aplot_lightning.training.run_record import STATUS, peak_memory_mib

MIB = 2**20
pytestmark = pytest.mark.skipif(not STATUS.is_file(), reason="only Linux tells a process its peak")
PROBE = (
    "import torch; from aplot_lightning.training.run_record import peak_memory_mib as peak; cpu = torch.device('cpu');"
)


def asked(code: str) -> list[float]:
    output = subprocess.run([sys.executable, "-c", PROBE + code], capture_output=True, text=True, check=True).stdout
    return json.loads(output)


@pytest.mark.stress
def test_the_peak_stays_after_the_memory_was_given_back() -> None:
    before, after = asked("a = peak(cpu); x = torch.ones(300 * 2**18); del x; print([a, peak(cpu)])")
    assert after - before == pytest.approx(300, abs=40)


@pytest.mark.stress
def test_a_process_does_not_begin_with_the_peak_of_the_one_that_started_it() -> None:
    held = np.ones(800 * MIB // 8)
    own = peak_memory_mib(torch.device("cpu"))
    (child,) = asked("print([peak(cpu)])")
    assert own is not None
    assert child < own - 500
    assert held.all()


def test_a_run_records_it(finished_run: Path) -> None:
    train = json.loads((finished_run / "metrics.json").read_text())["train"]
    assert 100 < train["peak_memory_mib"] < 20_000
