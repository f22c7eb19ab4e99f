"""Best-of-n against the true reward: how far can a reward model be optimized before it misleads?

    python studies/overoptimization/run.py --runs RUNS [--objectives bt,aplot,...] [--sets none,new_topics]
        [--prompts 32] [--samples 10000] [--scores runs/overoptimization] [--report true]

RUNS holds RUNS/OBJECTIVE/seedK, runs of conf/quickstart.yaml with a file of conf/objective/ (from `aplot compare`).
Scores are kept in --scores, so a stopped study resumes, also with additional runs. Writes the tables into README.md in
--output (this folder), between its markers, and plot.png. --report true scores nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from pools import MEASURED, Pool, draw_pools
from report import Curves, plot, table

from aplot_lightning.inference.best_of_n import best_of_n_means
from aplot_lightning.inference.vote_curve import powers_of_two

HERE = Path(__file__).parent
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SEED = 7  # seed of prompts and responses; the quickstart's training and test sets use 1 and 2
BATCH = 64  # responses in a packed row; the fastest from 16 to 1,024 on one core


def main() -> None:
    parser = argparse.ArgumentParser(description="best-of-n against the true reward in the embedded world")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--objectives", help="those to report, the baseline first; all that are there if not given")
    parser.add_argument("--sets", default="none,new_topics")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--scores", type=Path, default=Path("runs/overoptimization"))
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--report", choices=["true", "false"], default="false", help="score nothing")
    options = parser.parse_args()
    checkpoints = find_runs(options.runs, options.objectives.split(",") if options.objectives else None)
    if not checkpoints:
        raise SystemExit(f"no run with checkpoints/best.ckpt in {options.runs}/OBJECTIVE/seedK")
    options.scores.mkdir(parents=True, exist_ok=True)
    sizes = powers_of_two(options.samples)
    found: dict[str, Curves] = {}
    for world in options.sets.split(","):
        pools = draw_pools(world, options.prompts, options.samples, SEED)
        print(f"{world}: {len(pools)} prompts, {sum(len(pool.texts) for pool in pools):,} different texts", flush=True)
        scores = score_all(pools, world, checkpoints, options)
        found[world] = measure(pools, scores, sizes)
    write_page(found, options)
    plot(found, options.output / "plot.png")


def find_runs(folder: Path, objectives: Sequence[str] | None) -> dict[tuple[str, int], Path]:
    """(objective, seed) -> best checkpoint of every finished run, the baseline's first."""
    paths = sorted(folder.glob("*/seed*/checkpoints/best.ckpt"))
    paths = [path for path in paths if (path.parents[1] / "metrics.json").exists()]
    named = {(path.parents[2].name, int(path.parents[1].name.removeprefix("seed"))): path for path in paths}
    order = list(objectives or sorted({name for name, _ in named}, key=lambda name: (name != "bt", name)))
    wanted = [key for key in named if key[0] in order]
    return {key: named[key] for key in sorted(wanted, key=lambda key: (order.index(key[0]), key[1]))}


def score_all(
    pools: list[Pool], world: str, checkpoints: dict[tuple[str, int], Path], options: argparse.Namespace
) -> dict[tuple[str, int], np.ndarray]:
    """(objective, seed) -> rewards of all distinct texts, pool after pool.

    Kept in one folder per checkpoint digest with one file per pool, so that nothing is scored twice and little is lost
    if the script is stopped. --report leaves out runs that are not scored on all pools.
    """
    import torch

    from aplot_lightning.model.reward_model import RewardModel

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    names = [hashlib.sha256(repr((pool.prompt, pool.texts)).encode()).hexdigest()[:12] for pool in pools]
    rows: dict[str, list[np.ndarray]] = {}  # every run uses the world's tokenizer
    scores = {}
    for (objective, seed), checkpoint in checkpoints.items():
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]
        folder = options.scores / f"{objective}-seed{seed}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        missing = [
            (pool, name) for pool, name in zip(pools, names, strict=True) if not (folder / f"{name}.npy").exists()
        ]
        if missing and options.report == "true":
            continue
        started = time.monotonic()
        model = RewardModel.from_pretrained(str(checkpoint)) if missing else None
        for pool, name in missing:
            assert model is not None
            if name not in rows:
                rows[name] = model.encode(pool.conversations())
            part = folder / f"{name}.{os.getpid()}.part.npy"
            np.save(part, np.array(model.score_rows(rows[name], batch_size=BATCH), dtype=np.float32))
            part.replace(folder / f"{name}.npy")
        if missing:
            seconds = time.monotonic() - started
            print(f"{objective} seed {seed} {world}: {len(missing)} pools, {seconds:.0f} s", flush=True)
        scores[objective, seed] = np.concatenate([np.load(folder / f"{name}.npy") for name in names]).astype(float)
    return scores


def measure(pools: list[Pool], scores: dict[tuple[str, int], np.ndarray], sizes: list[int]) -> Curves:
    """The curves of every run, and of the true reward as its own proxy."""
    starts = np.cumsum([0, *(len(pool.texts) for pool in pools)])
    values: dict[str, list[np.ndarray]] = {}
    correlations: dict[str, list[list[float]]] = {}
    for (objective, _), rewards in scores.items():
        proxies = [
            rewards[start:stop][pool.text] for pool, start, stop in zip(pools, starts[:-1], starts[1:], strict=True)
        ]
        everything = np.concatenate(proxies)
        mean, spread = everything.mean(), everything.std()
        curves = [
            best_of_n_means(proxy, np.column_stack([(proxy - mean) / spread, pool.measured]), sizes)
            for proxy, pool in zip(proxies, pools, strict=True)
        ]
        values.setdefault(objective, []).append(np.array(curves))
        correlations.setdefault(objective, []).append(
            [float(np.corrcoef(proxy, pool.measured[:, 0])[0, 1]) for proxy, pool in zip(proxies, pools, strict=True)]
        )
    oracle = np.array([best_of_n_means(pool.measured[:, 0], pool.measured[:, 0], sizes) for pool in pools])
    return Curves(
        sizes,
        ("proxy", *MEASURED),
        {name: [seed for objective, seed in scores if objective == name] for name in values},
        {name: np.array(runs) for name, runs in values.items()},
        {name: np.array(runs) for name, runs in correlations.items()},
        oracle,
    )


def write_page(found: dict[str, Curves], options: argparse.Namespace) -> None:
    titles = {"none": "Prompts of the training world", "new_topics": "New topics"}
    parts = []
    for world, curves in found.items():
        if curves.values:
            parts.append(f"### {titles[world]}\n\n{table(curves)}")
    setting = (
        f"{options.prompts} prompts a set, {options.samples:,} responses each, {date.today()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, one thread:\n\n"
        f"    python {shlex.join(sys.argv)}"
    )
    page = options.output / "README.md"
    before, _, rest = (page.read_text() if page.exists() else "").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n" + "\n\n".join([setting, *parts]) + f"\n{END}{rest.partition(END)[2]}")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
