"""A run that is killed at random moments again and again ends as if nothing had been.

A process of its own imports everything once and forks the runs, so that a run takes about a second to start. Every kill
is a SIGKILL from outside to a whole process, in reading, training, validating or saving; every other run goes on from
what lies on disk.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import ended, forked

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("APLOT_KILLS", 4))  # 20 for the whole measurement
STEPS = 10 * KILLS
OPTIONS = {
    "objective": "aplot",
    "model.objective.margin.support": "queue",
    "model.objective.margin.queue_size": 40,
    "model.dropout": 0.1,
    "data.ood": {},
    "data.batch_size": 8,
    "data.micro_batch_size": 4,
    "checkpoint_every_n_steps": 1,
    "trainer.max_steps": STEPS,
    "trainer.max_epochs": -1,
    "trainer.val_check_interval": 15,
    "trainer.logger": False,
    "trainer.callbacks": [],
}


@pytest.mark.stress
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(laboratory: Any, tmp_path: Path) -> None:
    words = {
        "undisturbed": laboratory.arguments("fit", tmp_path / "undisturbed", OPTIONS),
        "killed": laboratory.arguments("fit", tmp_path / "killed", OPTIONS),
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("APLOT_RUN_DIR", None)
    told = subprocess.run(
        [sys.executable, __file__, json.dumps(words), str(tmp_path), str(KILLS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    steps = json.loads(told.stdout.splitlines()[-1])
    assert len(steps) == KILLS
    undisturbed, killed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in words
    )
    assert killed["global_step"] == undisturbed["global_step"] == STEPS
    torch.testing.assert_close(killed["state_dict"], undisturbed["state_dict"], rtol=0, atol=0)
    for name in ("optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(killed[name], undisturbed[name], rtol=0, atol=0)
    assert "objective.margin.queue.count" in killed["state_dict"]
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in words]
    assert figures[0]["id"] == figures[1]["id"]


def _kill_repeatedly(words: dict[str, list[str]], folder: Path, kills: int) -> list[int]:
    """Runs both, one of them killed so often; the step of the newest checkpoint at each kill (0 without one)."""
    import aplot_lightning.training.cli  # noqa: F401

    torch.set_num_threads(1)
    log = folder / "log.txt"
    start = time.monotonic()
    process = forked(words["undisturbed"], log)
    last = folder / "undisturbed" / "checkpoints" / "last.ckpt"
    while not last.exists():
        time.sleep(0.01)
    first = time.monotonic() - start
    assert ended(process, 1000) == 0, log.read_text()[-2000:]
    training = time.monotonic() - start - first
    chance = random.Random(5)
    last = folder / "killed" / "checkpoints" / "last.ckpt"
    steps: list[int] = []
    while len(steps) < kills:
        process = forked([*words["killed"], *(["--ckpt_path", "last"] if last.exists() else [])], log)
        seconds = first * chance.uniform(0.5, 1.0) + chance.uniform(0, 1.4 * training / kills)
        code = ended(process, seconds)
        assert code in (None, 0), log.read_text()[-2000:]
        if code == 0:  # it was ready before it was killed: from the beginning
            shutil.rmtree(folder / "killed")
            continue
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        steps.append(torch.load(last, weights_only=True)["global_step"] if last.exists() else 0)
    process = forked([*words["killed"], *(["--ckpt_path", "last"] if last.exists() else [])], log)
    assert ended(process, 1000) == 0, log.read_text()[-2000:]
    return steps


if __name__ == "__main__":
    found = _kill_repeatedly(json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(f"{json.dumps(found)}\n")
    sys.stdout.flush()
    os._exit(0)
