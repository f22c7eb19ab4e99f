"""Heads on a frozen backbone with embeddings on disk: embedding rate, and seconds of the training loop.

    python benchmarks/frozen_head.py [--pairs 10000] [--rounds 3]
    python benchmarks/frozen_head.py --data pairs.jsonl.gz more.jsonl.gz --backbone path/to/model

Without files it uses pairs of the embedded preference world and a decoder of 2 layers of width 576 with random
weights. Every row is `fit` in a separate process on the same pairs: 3 epochs, 32 pairs per optimizer batch, without
held-out sets. The clock of the loop runs from the start of training to the end of the last step, with everything that
Lightning and logging do, without reading, embedding and saving. CPU time is that of all threads; on a shared machine it
is more reliable than the clock. The start runs from the start of the process to the start of training: cold with an
empty cache, embedding included, and warm with the cache of the cold process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

BEGIN = "FROZEN_HEAD_BEGIN"  # start time of the process, set by the measuring process
PREFIX = "measured: "
EPOCHS, BATCH = 3, 32
HEADS = {"linear": "Linear", "MLP": "MLP"}
OBJECTIVES = {"BT": "bt", "APLOT": "aplot"}


class LoopTimer(Callback):
    """Prints the seconds before and in the training loop, its steps, and the number of embedded texts."""

    def __init__(self) -> None:
        self.embedded, self.embedding = 0, 0.0

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        forward = module.reward_model.backbone.forward

        def timed(input_ids: Any, attention_mask: Any, end: Any, *rest: Any) -> Any:
            start = time.perf_counter()
            output = forward(input_ids, attention_mask, end, *rest)
            self.embedding += time.perf_counter() - start
            self.embedded += len(end)
            return output

        module.reward_model.backbone.forward = timed

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.before = time.time() - float(os.environ[BEGIN])
        self.start, self.steps, self.pairs = time.perf_counter(), 0, 0
        self.cpu_start = time.process_time()

    def on_train_batch_end(self, trainer: Any, module: Any, *arguments: Any) -> None:
        self.seconds = time.perf_counter() - self.start
        self.cpu = time.process_time() - self.cpu_start
        self.steps += 1
        self.pairs += len(module.last_step.pairs)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        names = ("embedded", "embedding", "seconds", "cpu", "steps", "pairs")
        values = {**{name: getattr(self, name) for name in names}, "start": self.before}
        print(PREFIX + json.dumps(values), flush=True)


def train(options: argparse.Namespace) -> None:
    from aplot_lightning.cli import main

    with tempfile.TemporaryDirectory() as run_dir:
        code = main(
            [
                *("fit", "--config", "conf/frozen_head.yaml", "--config", f"conf/objective/{options.objective}.yaml"),
                *("--run_dir", run_dir, "--overwrite", "true", "--trainer.callbacks+=frozen_head.LoopTimer"),
                *("--trainer.max_epochs", str(EPOCHS), "--trainer.limit_val_batches", "0"),
                *(
                    "--model.backbone",
                    options.backbone,
                    "--model.pooling",
                    "auto",
                    "--model.head",
                    f"aplot_lightning.model.heads.{options.head}",
                ),
                *("--model.cache_dtype", options.dtype, "--data.cache_dir", options.cache),
                *("--data.train", options.sample, "--data.validation_share", "0", "--data.id_share", "0"),
                *("--data.batch_size", str(BATCH), "--data.max_length", str(options.max_length)),
            ]
        )
    sys.exit(code)


def draw_pairs(options: argparse.Namespace, path: Path) -> None:
    """Rows drawn at random from the readable rows of the files or the preference world."""
    from aplot_lightning.data.comparisons import RowError, parse_comparison
    from aplot_lightning.data.sources import open_source

    world = {"class_path": "aplot_lightning.data.world.PreferenceWorld", "init_args": {"pairs": options.pairs}}
    kept = []
    for value in options.data or [world]:
        for where, row in open_source(value, "--data").rows():
            try:
                parse_comparison(row, where, "data")
            except RowError:
                continue
            kept.append(row)
    random.Random(options.seed).shuffle(kept)
    path.write_text("".join(json.dumps(row) + "\n" for row in kept[: options.pairs]), encoding="utf-8")


def make_backbone(path: Path) -> str:
    """The world's decoder with a larger width, as a folder without weights, which come from the seed."""
    from aplot_lightning.data.world import write_world_decoder

    write_world_decoder(path)
    config = json.loads((path / "config.json").read_text())
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    (path / "config.json").write_text(json.dumps({**config, **sizes}))
    return str(path)


def measure(options: argparse.Namespace, head: str, objective: str) -> dict[str, float]:
    here = Path(__file__).resolve()
    command = [sys.executable, str(here), "--head", head, "--objective", objective]
    for name in ("backbone", "sample", "cache", "dtype", "max_length"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[1])]),
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        BEGIN: str(time.time()),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(command, cwd=here.parents[1], env=environment, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith(PREFIX)]
    if done.returncode or not found:
        sys.exit(f"{head}, {objective} failed:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    values: dict[str, float] = json.loads(found[-1].removeprefix(PREFIX))
    print(f"{head}, {objective}: {values}", file=sys.stderr, flush=True)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", help="preference pairs")
    parser.add_argument("--backbone", help="a model's folder")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("head", "objective", "sample", "cache"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.head is not None:
        train(options)
    with tempfile.TemporaryDirectory() as folder:
        options.sample, options.cache = str(Path(folder, "pairs.jsonl")), str(Path(folder, "cache"))
        draw_pairs(options, Path(options.sample))
        options.backbone = options.backbone or make_backbone(Path(folder, "world-decoder of width 576"))
        cold = measure(options, "Linear", "bt")
        size = sum(path.stat().st_size for path in Path(options.cache, "embeddings").rglob("*.bin"))
        rounds = [
            {(head, loss): measure(options, HEADS[head], OBJECTIVES[loss]) for head in HEADS for loss in OBJECTIVES}
            for _ in range(options.rounds)
        ]
    print_table(options, cold, size, rounds)


def print_table(
    options: argparse.Namespace,
    cold: dict[str, float],
    size: int,
    rounds: list[dict[tuple[str, str], dict[str, float]]],
) -> None:
    import torch

    warm = [values["start"] for each in rounds for values in each.values()]
    if any(values["embedded"] for each in rounds for values in each.values()):
        sys.exit("the backbone ran in a warm process")
    print(
        f"{date.today()}, {platform.machine()}, {options.threads} threads, torch {torch.__version__}; "
        f"{Path(options.backbone).name}, {cold['pairs'] / EPOCHS:,.0f} pairs of "
        f"{', '.join(Path(name).name for name in options.data or ['the preference world'])}, max_length "
        f"{options.max_length}, {options.dtype}, {options.rounds} rounds\n\n"
        f"{cold['embedded']:,.0f} conversations in {cold['embedding']:.1f} s: "
        f"{cold['embedded'] / cold['embedding']:.0f} a second, {size / 2**20:.1f} MiB on disk. "
        f"Start: {cold['start']:.1f} s cold, {statistics.median(warm):.1f} s warm.\n"
    )
    print(f"| head | objective | {EPOCHS} epochs | CPU time | steps | ms a step |\n|---|---|--:|--:|--:|--:|")
    for head, objective in rounds[0]:
        loops = [each[head, objective] for each in rounds]
        seconds = statistics.median(loop["seconds"] for loop in loops)
        cpu, steps = statistics.median(loop["cpu"] for loop in loops), loops[0]["steps"]
        print(f"| {head} | {objective} | {seconds:.2f} s | {cpu:.2f} s | {steps} | {1e3 * seconds / steps:.2f} |")


if __name__ == "__main__":
    main()
