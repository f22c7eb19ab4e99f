"""The cost of the transport margin: milliseconds for cost, plan and margin of n pairs, at the defaults of APLOT.

    python benchmarks/transport.py [--sizes 32 128 512 2048 4096] [--rounds 5]

Random rewards and embeddings of width 576, float32, 50 iterations; medians over rounds. Memory is that of the n x n
matrices: the cost, the plan and the solver's own.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from datetime import date

import torch

from aplot_lightning.transport import transport_cost, transport_margin, transport_plan


def seconds(pairs: int) -> float:
    generator = torch.Generator().manual_seed(pairs)
    rewards = [torch.randn(pairs, generator=generator) for _ in range(2)]
    embeddings = [torch.randn(pairs, 576, generator=generator) for _ in range(2)]
    start = time.perf_counter()
    cost = transport_cost(*rewards, *embeddings)
    transport_margin(cost, transport_plan(cost))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 512, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds(32)  # imports on first use
    print(f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| pairs | transport | one n x n matrix |")
    print("|--:|--:|--:|")
    for size in options.sizes:
        taken = statistics.median(seconds(size) for _ in range(options.rounds))
        print(f"| {size:,} | {1000 * taken:,.1f} ms | {4 * size * size / 2**20:,.2f} MiB |")


if __name__ == "__main__":
    main()
