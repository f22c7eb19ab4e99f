"""Every objective of conf/objective/ on the embedded preference world: one run each, one table.

    python studies/objectives.py [--objectives bt,aplot,...] [--seeds 0] [--workers 2] [--runs runs/objectives]

A run that is already there is not repeated. Each is the quickstart's config with one objective file, so a line of the
table is what `aplot fit --config conf/quickstart.yaml --config conf/objective/X.yaml` gives. Writes the table into
studies/README.md between its markers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- objectives: begin -->", "<!-- objectives: end -->"


def fit(objective: str, seed: int, runs: Path, threads: int) -> Path:
    """Runs one fit in a process of its own, unless it is there already, and returns its directory."""
    run_dir = runs / f"{objective}-seed{seed}"
    if not (run_dir / "metrics.json").exists():
        files = ["conf/quickstart.yaml", f"conf/objective/{objective}.yaml"]
        command = [sys.executable, "-m", "aplot_lightning", "fit", *(w for f in files for w in ("--config", f))]
        command += ["--run_dir", str(run_dir), "--overwrite", "true", "--seed_everything", str(seed)]
        command += ["--data.watch_test_sets", "false"]  # they are evaluated once, at the end
        run_dir.mkdir(parents=True, exist_ok=True)
        with (run_dir / "log.txt").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        print(
            f"{objective} seed {seed}: {'done' if done.returncode == 0 else f'failed, see {run_dir}/log.txt'}",
            flush=True,
        )
    return run_dir


def cell(figures: dict) -> str:
    low, high = figures["ci95"]
    return f"{figures['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def table(runs: dict[tuple[str, int], Path]) -> str:
    """Accuracy with 95 % intervals, a line for each run; runs that failed are said to have."""
    lines = []
    for (objective, seed), run_dir in runs.items():
        path = run_dir / "metrics.json"
        if not path.exists():
            lines.append(f"| {objective} | {seed} | failed |")
            continue
        metrics = json.loads(path.read_text())
        sets = list(metrics["ood"])
        if not any(line.startswith("| objective") for line in lines):
            heads = ["objective", "seed", "ID", *(name.replace("_", " ") for name in sets), "OOD mean", "seconds"]
            lines = [f"| {' | '.join(heads)} |", "|---|--:" + "|--:" * (len(heads) - 2) + "|", *lines]
        cells = [cell(metrics["id"]), *(cell(metrics["ood"][name]) for name in sets)]
        mean = f"{metrics['ood_mean']['accuracy']:.3f}"
        lines.append(f"| {objective} | {seed} | {' | '.join(cells)} | {mean} | {metrics['train']['seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="every objective on the embedded world")
    parser.add_argument(
        "--objectives", default=",".join(sorted(p.stem for p in (ROOT / "conf/objective").glob("*.yaml")))
    )
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/objectives")
    options = parser.parse_args()
    names = options.objectives.split(",")
    names.sort(key=lambda name: (name != "bt", name))
    wanted = [(name, int(seed)) for seed in options.seeds.split(",") for name in names]
    with ThreadPoolExecutor(options.workers) as pool:
        done = pool.map(lambda run: fit(*run, options.runs, options.threads), wanted)
        runs = dict(zip(wanted, done, strict=True))
    page = ROOT / "studies/README.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(runs)}\n{END}{rest.partition(END)[2]}")
    print(table(runs))


if __name__ == "__main__":
    main()
