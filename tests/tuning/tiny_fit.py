"""A stand-in for `fit` that ends at once: what a comparison sees of a run, without a model.

Its configs say in `tiny` how it goes: ok, fail (exit 1), refuse (exit 2), killed, silent (no metrics.json), or slow
(until it gets SIGTERM, on which it saves itself) or late (which is ready just then).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import yaml

words = dict(pairwise(sys.argv[1:]))
how: dict[str, str] = {}
for name, value in pairwise(sys.argv[1:]):
    if name == "--config":
        how |= yaml.safe_load(Path(value).read_text())
run_dir = Path(words["--run_dir"])
last = run_dir / "checkpoints" / "last.ckpt"
last.parent.mkdir(parents=True, exist_ok=True)
account = [*json.loads(last.read_text()), sys.argv[1:]] if "--ckpt_path" in words else [sys.argv[1:]]


def save(*_: object) -> None:
    last.write_text(json.dumps(account))


save()
share = [os.environ.get(name, "-") for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
sys.stdout.write(f"tiny {' '.join(share)}\n")
sys.stdout.flush()
if how["tiny"] in ("slow", "late") and "--ckpt_path" not in words:

    def end(*_: object) -> None:
        save()
        if how["tiny"] == "late":
            (run_dir / "metrics.json").write_text("{}")
        sys.exit(143 if how["tiny"] == "slow" else 0)

    signal.signal(signal.SIGTERM, end)
    (run_dir / "ready").touch()
    time.sleep(60)
if how["tiny"] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how["tiny"] in ("fail", "refuse"):
    sys.stderr.write(f"aplot: it is meant to {how['tiny']}\n")
    sys.exit(1 if how["tiny"] == "fail" else 2)
if how["tiny"] != "silent":
    (run_dir / "metrics.json").write_text("{}")
