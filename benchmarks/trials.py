"""Short runs of a head on a frozen backbone, as a study starts them: seconds and processor seconds, by phase.

    python benchmarks/trials.py [--pairs 2000] [--trials 5] [--threads 1]
    python benchmarks/trials.py --data pairs.jsonl.gz --backbone path/to/model

Without files it uses pairs of the embedded preference world and a decoder of 2 layers of width 576 with random
weights. A trial is `fit` with conf/frozen_head.yaml and APLOT: 3 epochs, 32 pairs per optimizer batch, a validation per
epoch, and the held-out sets once at the end. Prepared data and embeddings are on disk before the first measured trial.
Each way starts its trials one after another:

    a process each          python -m aplot_lightning fit ...
    forked                  from a process that has imported everything (Launcher(preload=True))
    spare                   --report false --checkpoint_backbone false --checkpoint_keep 0

Processor seconds are of all threads; on a shared machine they are more reliable than the clock. Those before training
are imports, parsing of options, and building of model and data; those after it are test sets, figures and report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from datetime import date
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from frozen_head import draw_pairs, make_backbone
from lightning.pytorch.callbacks import Callback

PREFIX = "measured: "
SPARE = ["--report", "false", "--checkpoint_backbone", "false", "--checkpoint_keep", "0"]
WAYS = {
    "a process each": (False, []),
    "a process each, spare": (False, SPARE),
    "forked": (True, []),
    "forked, spare": (True, SPARE),
}


class Clock(Callback):
    """Prints the processor seconds of this process at the start and at the end of training."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.before = time.process_time()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        values = {"before": self.before, "training": time.process_time() - self.before}
        print(PREFIX + json.dumps(values), flush=True)


def fit_arguments(options: argparse.Namespace, run_dir: Path, more: list[str]) -> list[str]:
    return [
        *("fit", "--config", "conf/frozen_head.yaml", "--config", "conf/objective/aplot.yaml"),
        *("--model.backbone", options.backbone, "--model.pooling", options.pooling, "--data.train", options.sample),
        *("--data.validation_share", "0.1", "--data.id_share", "0.1", "--data.max_length", str(options.max_length)),
        *("--trainer.callbacks+=trials.Clock", "--trainer.enable_model_summary", "false"),
        *("--run_dir", str(run_dir), *more),
    ]


def measure(options: argparse.Namespace, folder: Path, way: str) -> list[dict[str, float]]:
    """The trials of one way, without a first one that starts the server and warms the disk's cache."""
    from aplot_lightning.tuning.processes import Launcher

    preload, more = WAYS[way]
    found = []
    with Launcher(preload=preload) as launcher:
        for trial in range(options.trials + 1):
            run_dir = folder / f"{way} {trial}"
            start, spent = time.perf_counter(), seconds_of_ended(preload)
            child = launcher.start(fit_arguments(options, run_dir, more), log=run_dir.with_suffix(".log"))
            code = child.ended.result()
            values = {"clock": time.perf_counter() - start, "all": seconds_of_ended(preload) - spent}
            output = child.log.read_text()
            if code:
                sys.exit(f"{way} failed:\n{output[-2000:]}")
            line = next(line for line in output.splitlines() if line.startswith(PREFIX))
            values |= json.loads(line.removeprefix(PREFIX))
            values["disk"] = sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file()) / 2**20
            if trial:
                found.append(values)
            print(f"{way}: {values}", file=sys.stderr, flush=True)
    return found


def seconds_of_ended(preload: bool) -> float:
    """Processor seconds of the children that ended, as their parent counts them: this process or the fork server."""
    server = forkserver._forkserver._forkserver_pid if preload else None
    if server is not None:
        fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", help="preference pairs")
    parser.add_argument("--backbone", help="a model's folder")
    parser.add_argument("--pooling", default="auto", help="of the backbone")
    parser.add_argument("--pairs", type=int, default=2_000)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    here = Path(__file__).resolve()
    os.chdir(here.parents[1])
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[1])]), "HF_HUB_OFFLINE": "1"}
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.sample = str(folder / "pairs.jsonl")
        os.environ.setdefault("APLOT_CACHE", str(folder / "cache"))
        draw_pairs(options, Path(options.sample))
        options.backbone = options.backbone or make_backbone(folder / "world-decoder of width 576")
        table = {way: measure(options, folder, way) for way in WAYS}
    print_table(options, table)


def print_table(options: argparse.Namespace, table: dict[str, list[dict[str, float]]]) -> None:
    import torch

    print(
        f"{date.today()}, {platform.machine()}, {options.threads} threads at a load of {os.getloadavg()[1]:.0f}, torch "
        f"{torch.__version__}; {Path(options.backbone).name}, {options.pairs:,} pairs of "
        f"{', '.join(Path(name).name for name in options.data or ['the preference world'])}, max_length "
        f"{options.max_length}, {options.trials} trials\n"
    )
    print("| way | clock | processor seconds | before training | training | after | disk a trial |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for way, trials in table.items():
        clock, total, before, training, disk = (
            statistics.median(trial[key] for trial in trials) for key in ("clock", "all", "before", "training", "disk")
        )
        after = total - before - training
        print(f"| {way} | {clock:.1f} s | {total:.2f} | {before:.2f} | {training:.2f} | {after:.2f} | {disk:.1f} MiB |")


if __name__ == "__main__":
    main()
