"""`score --resume true` that is killed at random moments again and again writes the bytes of an undisturbed one.

A process of its own imports everything once and forks the commands. Every kill is a SIGKILL from outside to a whole
process, in reading, scoring, writing or putting the output in its place.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ended, forked

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("APLOT_KILLS", 3))  # 10 for the whole measurement
ROWS = 16 * 12 * max(3, KILLS)
CHUNK = 16


@pytest.mark.parametrize(("command", "suffix"), [("score", ".jsonl"), ("score", ".parquet"), ("rank", ".jsonl.gz")])
def test_a_scoring_that_is_killed_again_and_again_writes_the_same_bytes(
    laboratory: Any, tmp_path: Path, command: str, suffix: str
) -> None:
    with (tmp_path / "in.jsonl").open("w") as file:
        for number in range(ROWS):
            prompt = f"question {number % 31}"
            several = [f"answer {place * number % 7} {'so ' * (number % 23)}" for place in (1, 2)]
            pair = {"prompt": prompt, "chosen": several[0], "rejected": several[1]}
            row = {"prompt": prompt, "responses": several} if command == "rank" else pair
            file.write(("not json" if number % 50 == 7 else json.dumps({**row, "number": number})) + "\n")
    outputs = [tmp_path / f"{name}{suffix}" for name in ("undisturbed", "killed")]
    model = str(laboratory.folder / "backbone")  # without weights: from a fixed seed
    words = [
        [command, "--model", model, "--input", str(tmp_path / "in.jsonl"), "--output", str(path)] for path in outputs
    ]
    told = subprocess.run(
        [
            sys.executable,
            __file__,
            json.dumps(words),
            str(tmp_path / "log.txt"),
            str(KILLS),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    written = json.loads(told.stdout.splitlines()[-1])
    assert len(written) == KILLS
    assert any(written), "no kill came after something was written"
    assert outputs[1].read_bytes() == outputs[0].read_bytes()
    assert not list(tmp_path.glob("*.part*"))
    if suffix == ".jsonl":
        assert len(outputs[0].read_bytes().splitlines()) == ROWS


def _kill_repeatedly(undisturbed: list[str], killed: list[str], log: Path, kills: int) -> list[int]:
    """Runs both, one of them killed so often; bytes of its part file at each kill (0 without one)."""
    import torch

    from aplot_lightning.inference import job

    torch.set_num_threads(1)
    job.CHUNK = CHUNK
    assert ended(forked(undisturbed, log), 1000) == 0, log.read_text()[-2000:]
    chance = random.Random(3)
    part, journal, output = (Path(f"{killed[-1]}{end}") for end in (".part", ".part.journal", ""))
    written: list[int] = []
    while len(written) < kills:
        process = forked([*killed, "--resume", "true"], log)
        lines = ROWS // CHUNK * (len(written) + chance.random()) / kills  # a load decides nothing: killed by progress
        while (code := ended(process, 0.002)) is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > lines:
                code = ended(process, chance.uniform(0, 0.05))
                break
        assert code in (None, 0), log.read_text()[-2000:]
        if code == 0:  # it was ready before it was killed: from the beginning
            output.unlink()
            continue
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        written.append(part.stat().st_size if part.exists() else 0)
    process = forked([*killed, "--resume", "true"], log)
    assert ended(process, 1000) == 0, log.read_text()[-2000:]
    return written


if __name__ == "__main__":
    found = _kill_repeatedly(*json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(f"{json.dumps(found)}\n")
    sys.stdout.flush()
    os._exit(0)
