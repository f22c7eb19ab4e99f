"""Peak memory of `aplot score` over few and over many rows: it must not grow with the file.

    python benchmarks/score_memory.py --data PAIRS.jsonl.gz RUN [--rows 5000 200000] [--max_length 256]

The pairs are repeated to reach the number of rows; a run of the quickstart keeps it short.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory


@dataclass
class Spent:
    """Time and memory of one process; `peak_mib` is its largest resident set, in MiB."""

    seconds: float
    processor_seconds: float
    peak_mib: float


def whole_command(run: str, source: Path, limit: list[str]) -> Spent:
    """`aplot score` of a file of pairs, imports included; the output is written to the folder of its input."""
    arguments = ["score", "--model", run, "--input", str(source), "--output", str(source.with_suffix(".scored.jsonl"))]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "aplot_lightning", *arguments, *limit], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)  # the usage of this child only
    if status:
        raise SystemExit(f"aplot {' '.join(arguments)}: exit {os.waitstatus_to_exitcode(status)}")
    return Spent(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    from aplot_lightning.data.sources import open_source

    parser = argparse.ArgumentParser(description="peak memory of aplot score")
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[5000, 200_000])
    parser.add_argument("--max_length", type=int)
    options = parser.parse_args()
    limit = [] if options.max_length is None else ["--max_length", str(options.max_length)]
    columns = ("prompt", "chosen", "rejected")
    lines = [json.dumps({name: row[name] for name in columns}) for _, row in open_source(options.data, "--data").rows()]
    print("| rows | s | rows/s | peak MiB |\n|--:|--:|--:|--:|", flush=True)
    for rows in options.rows:
        with TemporaryDirectory() as folder:
            source = Path(folder, "rows.jsonl")
            with source.open("w") as file:
                file.writelines(f"{line}\n" for line in itertools.islice(itertools.cycle(lines), rows))
            spent = whole_command(options.run, source, limit)
        print(f"| {rows:,} | {spent.seconds:.0f} | {rows / spent.seconds:.0f} | {spent.peak_mib:.1f} |", flush=True)


if __name__ == "__main__":
    main()
