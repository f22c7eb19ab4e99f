"""Other programs read an exported model, each in its own environment without this package.

    python benchmarks/clients/run.py RUN [RUN ...] --pairs PAIRS.jsonl

exports each run, scores pairs with this package, and compares with

- transformers.pipeline, with the versions of constraints.txt,
- TRL: three steps of GRPO and of RLOO of a tiny policy with the folder as its reward,
- rewardbench 0.1.4, which pins transformers 4.51.0, by its own command on a local file.

The environments are created once in .tox/clients (about 3 GB), with pip's settings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from aplot_lightning import RewardModel
from aplot_lightning.commands import export
from aplot_lightning.data.comparisons import conversation_of
from aplot_lightning.data.sources import open_source
from aplot_lightning.data.world import PreferenceWorld

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = {
    "trl": ["-c", str(ROOT / "constraints.txt"), "torch", "transformers", "trl"],
    "rewardbench": ["torch==2.13.0", "rewardbench==0.1.4", "setuptools<81"],  # it imports pkg_resources
}
SIDES = ("chosen", "rejected")
SHOWN = ("transformers", "trl", "rewardbench")

Messages = list[dict[str, str]]


def environment(name: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """The Python of an environment, created if missing, and the versions in it."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        print(f"making {folder / name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--quiet", *ENVIRONMENTS[name]], check=True)
    words = [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    found = {package["name"].lower(): package["version"] for package in listed}
    assert "aplot-lightning" not in found
    return python, {package: found[package] for package in SHOWN if package in found}


def ask(words: list[object], folder: Path) -> None:
    """Runs a client; shows its output only if it fails."""
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONWARNINGS": "ignore"}
    settings.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} failed:\n{done.stdout[-3000:]}")


def read_pairs(path: str | None, count: int, model: RewardModel) -> list[list[Messages]]:
    """The first pairs that need no truncation: a chosen and a rejected conversation of a user and an assistant each."""
    source = PreferenceWorld(pairs=4 * count, seed=5) if path is None else open_source(path, "--pairs")
    pairs: list[list[Messages]] = []
    for _, row in source.rows():
        pair = [list(conversation_of(row.get("prompt"), row[side])) for side in SIDES]
        alternating = all(
            message["role"] == ("user", "assistant")[place % 2] for each in pair for place, message in enumerate(each)
        )
        if alternating and (model.max_length is None or max(map(len, model.encode(pair))) < model.max_length):
            pairs.append(pair)
        if len(pairs) == count:
            break
    return pairs or sys.exit(f"--pairs: {path} has no pair that fits into the model's max_length")


def largest(client: str, found: list[float], expected: list[float]) -> str:
    """The largest difference, as text; ends the program if a client gives other rewards."""
    assert len(found) == len(expected) > 0
    difference = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    if not difference <= 1e-4:
        sys.exit(f"{client} gives other rewards, by up to {difference}")
    return f"{difference:.1e}"


def write_policy(folder: Path) -> Path:
    """A tiny causal language model from scratch, with the world's vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from aplot_lightning.model.locate import ASSETS

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ASSETS / "world-decoder")).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ASSETS / "world-decoder").save_pretrained(folder)
    return folder


def try_clients(run: str, path: str | None, count: int, pythons: dict[str, Path], work: Path) -> list[list[str]]:
    """Rows of the table for one run."""
    folder = work / "model"
    export.main(run, str(folder))
    model = RewardModel.from_pretrained(run)
    pairs = read_pairs(path, count, model)
    rows = [conversation for pair in pairs for conversation in pair]

    def own(conversations: list[Any]) -> list[float]:
        return model.score([{"prompt": each[:-1], "response": each[-1:]} for each in conversations])

    expected = own(rows)
    (work / "rows.json").write_text(json.dumps(rows))
    ask([pythons["trl"], Path(__file__).with_name("inside.py"), "pipeline", folder, "rows.json", "out.json"], work)
    found = json.loads((work / "out.json").read_text())
    table = [["transformers.pipeline", f"{len(rows)} conversations", largest("pipeline", found, expected)]]
    for name in ("GRPO", "RLOO"):
        words = [Path(__file__).with_name("inside.py"), name, folder, "rows.json", "out.json"]
        ask([pythons["trl"], *words, "--policy", write_policy(work / "policy")], work)
        told = json.loads((work / "out.json").read_text())
        assert told["steps"] == 3
        assert told["moved"]
        what = f"{told['steps']} steps, {len(told['rewards'])} completions"
        table.append([f"TRL {name}", what, largest(name, told["rewards"], own(told["conversations"]))])
    whole = [dict(zip(SIDES, pair, strict=True)) for pair in pairs]
    (work / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    # it pads on the left, but an encoder reads the first token: one row at a time for encoders
    size = 8 if model.pooling == "last" else 1
    words = [
        "--model",
        "model",
        "--dataset",
        "pairs.jsonl",
        "--load_json",
        "--not_quantized",
        "--torch_dtype",
        "float32",
    ]
    words += ["--batch_size", size, "--max_length", 4096, "--output_dir", "results/", "--save_all"]
    ask([pythons["rewardbench"], Path(__file__).with_name("inside.py"), "rewardbench", *words], work)
    lines = [json.loads(line) for line in (work / "results" / "model_all.jsonl").read_text().splitlines()]
    found = [line[side][0] for line in lines for side in SIDES]
    accuracy = json.loads((work / "results" / "model.json").read_text())["accuracy"]
    assert accuracy == sum(a > b for a, b in zip(expected[::2], expected[1::2], strict=True)) / len(pairs)
    table.append(
        ["rewardbench", f"{len(pairs)} pairs, accuracy {accuracy:.3f}", largest("rewardbench", found, expected)]
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--pairs", help="a file of pairs; pairs of the world if not given")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--environments", type=Path, default=ROOT / ".tox" / "clients")
    given = parser.parse_args()
    made = {name: environment(name, given.environments) for name in ENVIRONMENTS}
    table = []
    for run in given.runs:
        with TemporaryDirectory() as work:
            pythons = {name: python for name, (python, _) in made.items()}
            rows = try_clients(run, given.pairs, given.count, pythons, Path(work))
        table += [[Path(run).name, *row] for row in rows]
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {torch.get_num_threads()} threads, CPU;", end=" ")
    print("; ".join(", ".join(f"{name} {version}" for name, version in made[each][1].items()) for each in made))
    print("\n| run | client | what it did | largest difference of a reward |\n|---|---|---|--:|")
    for row in table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
