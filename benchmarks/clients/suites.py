"""Our rules of RewardBench and RewardBench 2 against the `rewardbench` package's own aggregation, on random rewards.

    python benchmarks/clients/suites.py [--environments .tox/clients] [--tables 200] [--output suites.md]

The package runs in its own environment, created as in `run.py` if missing. Both get the same rewards, with ties, for as
many rows as the public sets have and for random parts of them, and must agree to 1e-12 in every subset, section and
score. The package has no function for the final averages of its leaderboard; they are copied here in NumPy from
`analysis/get_benchmark_results.py` and run in that environment too.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from run import environment

from aplot_lightning.evaluation.suites import RULES
from aplot_lightning.evaluation.suites.rewardbench import COUNTS, PRIOR
from aplot_lightning.evaluation.suites.rewardbench2 import COUNTS as COUNTS_2

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-12
# runs in the package's environment: rewards in, the package's figures out
THEIRS = """
import json, sys
import numpy as np
from datasets import Dataset, disable_progress_bars
from rewardbench.constants import EXAMPLE_COUNTS, SUBSET_MAPPING
from rewardbench.utils import calculate_scores_per_section, process_single_model, reroll_and_score_dataset

disable_progress_bars()
PRIOR = ["anthropic_helpful", "anthropic_hhh", "shp", "summarize"]

def first(table):
    rows = {}
    for subset, chosen, rejected in zip(table["subset"], table["chosen"], table["rejected"]):
        rows.setdefault(subset, []).append(1 if chosen > rejected else 0)  # as rewardbench.py has it
    grouped = {subset: sum(values) / len(values) for subset, values in rows.items()}
    sections = calculate_scores_per_section(EXAMPLE_COUNTS, SUBSET_MAPPING, grouped)
    prior = [grouped[name] for name in PRIOR if name in grouped]
    figures = [*sections.values(), np.mean(prior) if len(prior) == 4 else np.nan]
    masked = np.ma.masked_array(figures, np.isnan(figures))
    score = float(np.ma.average(masked, weights=[2, 2, 2, 2, 1]))
    return {"score": score, "parts": {**grouped, **sections}}

def second(table):
    flat = {"text": [], "scores": [], "subset": [], "id": []}
    for name, subset, rewards in zip(table["id"], table["subset"], table["rewards"]):
        for reward in rewards:
            for column, value in zip(flat, ("", reward, subset, name)):
                flat[column].append(value)
    lengths = [len(rewards) for rewards in table["rewards"]]
    rows = reroll_and_score_dataset(Dataset.from_dict(flat), lengths).add_column("num_correct", table["correct"])
    parts = {}
    for subset in sorted(set(table["subset"])):
        own = rows.filter(lambda row: row["subset"] == subset)
        if subset.lower() == "ties":
            parts[subset] = process_single_model(own)[1]
        else:
            parts[subset] = sum(own["results"]) / len(own["results"])
    return {"score": float(np.mean(list(parts.values()))), "parts": {name: float(part) for name, part in parts.items()}}

tables = json.load(open(sys.argv[1]))
made = [first(table) if kind == "rewardbench" else second(table) for kind, table in tables]
json.dump(made, open(sys.argv[2], "w"))
"""


def rewards_of(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Random rewards; in half of the tables to one decimal, so that there are ties."""
    values = random.normal(size=shape) + random.normal() * (np.arange(shape[-1]) == 0)
    return values.round(1) if random.random() < 0.5 else values


def first(random: np.random.Generator, whole: bool) -> dict[str, Any]:
    """A table of RewardBench's pairs: all of them, or some of every subset; with the prior sets or without."""
    counts = {**COUNTS, **(dict.fromkeys(PRIOR, 50) if random.random() < 0.5 else {})}
    own = {name: count if whole else int(random.integers(1, count + 1)) for name, count in counts.items()}
    subsets = [name for name, count in own.items() for _ in range(count)]
    rewards = rewards_of(random, len(subsets), 2)
    return {"subset": subsets, "chosen": rewards[:, 0].tolist(), "rejected": rewards[:, 1].tolist()}


def second(random: np.random.Generator, whole: bool) -> dict[str, Any]:
    """A table of RewardBench 2's prompts; Ties are pairs of prompts, some of which lack their other half."""
    table: dict[str, list[Any]] = {"id": [], "subset": [], "rewards": [], "correct": []}

    def add(name: str, subset: str, rewards: np.ndarray, correct: int) -> None:
        for column, value in zip(table, (name, subset, rewards.tolist(), correct), strict=True):
            table[column].append(value)

    for subset, count in COUNTS_2.items():
        if subset != "Ties":
            rows = count if whole else int(random.integers(1, count + 1))
            for number, rewards in enumerate(rewards_of(random, rows, 4)):
                add(str(number), subset, rewards, 1)
    for number in range(COUNTS_2["Ties"] // 2):
        lift = random.normal(1.0)
        if whole or random.random() < 0.9:
            add(f"ref:{number}", "Ties", rewards_of(random, 1 + int(random.integers(1, 9))), 1)
        if whole or random.random() < 0.9:
            correct = int(random.integers(2, 8))
            rewards = rewards_of(random, correct + int(random.integers(1, 9)))
            rewards[:correct] += lift
            add(f"tied:{number}", "Ties", rewards, correct)
    return table


def ours(kind: str, table: dict[str, Any]) -> dict[str, Any]:
    count = len(table["subset"])
    prompts = np.arange(count)
    if kind == "rewardbench":
        columns = {
            "subset": table["subset"],
            "prompt": prompts,
            "chosen_reward": np.asarray(table["chosen"]),
            "rejected_reward": np.asarray(table["rejected"]),
            "target": np.ones(count),
        }
    else:
        columns = {**table, "prompt": prompts}
    figures = RULES[kind](columns).results
    parts = {name: part["accuracy"] for name, part in figures["subsets"].items() if part}
    return {"score": figures["accuracy"], "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path, default=ROOT / ".tox" / "clients")
    parser.add_argument("--python", type=Path, help="the Python of an environment that has rewardbench already")
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    python = arguments.python or environment("rewardbench", arguments.environments)[0]
    random = np.random.default_rng(0)
    makers = {"rewardbench": first, "rewardbench2": second}
    tables = [
        (kind, make(random, number % 2 == 0)) for kind, make in makers.items() for number in range(arguments.tables)
    ]
    with TemporaryDirectory() as folder:
        given, made = Path(folder) / "tables.json", Path(folder) / "figures.json"
        given.write_text(json.dumps(tables))
        subprocess.run([str(python), "-c", THEIRS, str(given), str(made)], check=True, stderr=subprocess.DEVNULL)
        theirs = json.loads(made.read_text())
    lines = []
    for kind in makers:
        pairs = [
            (ours(kind, table), figures) for (name, table), figures in zip(tables, theirs, strict=True) if name == kind
        ]
        score = max(abs(mine["score"] - their["score"]) for mine, their in pairs)
        compared = [(mine["parts"][name], part) for mine, their in pairs for name, part in their["parts"].items()]
        part = max(abs(one - other) for one, other in compared)
        assert max(score, part) <= TOLERANCE, (kind, score, part)
        lines.append(f"| {kind} | {len(pairs)} | {len(compared)} | {part:.1e} | {score:.1e} |")
    words = "python benchmarks/clients/suites.py"
    text = "\n".join(
        [
            "# Our rules against the package's own",
            "",
            f"`{words} --tables {arguments.tables}`: rewardbench 0.1.4's aggregation and ours on the same random",
            "rewards, with ties; every other table has all rows of the public set, the rest a random part of each",
            f"subset. {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, NumPy {np.__version__}.",
            "",
            "| suite | tables | subsets and sections compared | largest difference there | in the score |",
            "|---|--:|--:|--:|--:|",
            *lines,
            "",
        ]
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
