"""Run directories as `fit` leaves them, made up but with real event, Parquet and JSON files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from aplot_lightning.evaluation.metrics import COLUMNS, ood_mean, summarise_set

APLOT = {
    "class_path": "aplot_lightning.objectives.Objective",
    "init_args": {
        "link": None,
        "margin": {
            "class_path": "aplot_lightning.objectives.TransportMargin",
            "init_args": {"reward_weight": 0.9, "epsilon": 0.1, "reading": "conditional"},
        },
        "target": None,
    },
}

SETS = {"id": 0.8, "new_topics": 0.75, "reversed_cue": 0.3, "harder_pairs": 0.55}


def predictions(name: str, accuracy: float, seed: int, pairs: int = 240) -> dict[str, np.ndarray]:
    """`pairs` pairs of a set, three to a prompt; the set's texts depend on its name only, the rewards on the seed."""
    texts = np.random.default_rng(len(name))
    random = np.random.default_rng([seed, len(name)])
    gap = np.abs(random.normal(1, 0.6, pairs)) * np.where(random.random(pairs) < accuracy, 1, -1)
    rejected = random.normal(size=pairs)
    return {
        "id": np.array([f"{name}-{place}" for place in range(pairs)]),
        "prompt": np.repeat(texts.integers(-(2**62), 2**62, pairs // 3 + 1), 3)[:pairs],
        "subset": np.array([f"part_{place % 2}" for place in range(pairs)]),
        "chosen_reward": (rejected + gap).astype(np.float32).astype(np.float64),
        "rejected_reward": rejected.astype(np.float32).astype(np.float64),
        "target": np.ones(pairs),
        "chosen_characters": texts.integers(10, 400, pairs),
        "rejected_characters": texts.integers(10, 400, pairs),
        "similarity": texts.random(pairs),
    }


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_figures(run: Path, sets: dict[str, float], seed: int) -> None:
    figures: dict[str, Any] = {"ood": {}}
    for name, accuracy in {"validation": 0.8, **sets}.items():
        columns = predictions(name, accuracy, seed)
        write_parquet(run / "predictions" / f"{name}.parquet", columns)
        known = {key: torch.as_tensor(columns[key]).to(dtype) for key, dtype in COLUMNS.items() if key in columns}
        ood = name not in {"id", "validation"}
        table = {"index": torch.arange(len(columns["id"])), **known}
        (figures["ood"] if ood else figures)[name] = summarise_set(table, columns["subset"].tolist() if ood else None)
    figures["ood_mean"] = {"accuracy": ood_mean(figures["ood"])}
    write_metrics(run, figures)


def write_metrics(run: Path, figures: dict[str, Any]) -> None:
    train = {"steps": 300, "pairs": 9568, "seconds": 92.5, "pairs_per_second": 103.4, "tokens_per_second": 5310.2}
    (run / "metrics.json").write_text(json.dumps({**figures, "train": train}, allow_nan=False))


def write_events(run: Path, sets: dict[str, float]) -> None:
    random = np.random.default_rng(0)
    with SummaryWriter(str(run)) as writer:
        for step in range(1, 301):
            writer.add_scalar("train/loss", 0.69 * np.exp(-step / 150) + 0.05 * random.random(), step)
            if step % 50 == 0:
                reached = 1 - np.exp(-step / 80)
                writer.add_scalar("validation/accuracy", 0.5 + (0.8 - 0.5) * reached, step)
                writer.add_scalar("id/accuracy", 0.5 + (sets["id"] - 0.5) * reached, step)
                writer.add_scalar("ood_mean/accuracy", 0.5 + 0.03 * reached, step)


def write_margins(run: Path) -> None:
    random = np.random.default_rng(1)
    step, similarity = np.repeat(np.arange(10, 301, 10), 32), random.uniform(0.2, 1, 960)
    cost = 0.45 - 0.1 * random.random(960) + 0.1 * similarity
    margin = 0.1 + 0.15 * similarity + 0.01 * random.normal(size=960)
    columns = {"step": step, "margin": margin, "similarity": similarity, "cost": cost, "gap": random.normal(size=960)}
    write_parquet(run / "diagnostics" / "margins.parquet", columns)


def write_errors(run: Path) -> None:
    rows = [
        {
            "set": "reversed_cue",
            "id": f"pair-{place}",
            "subset": "part_0",
            "prompt": "Which is it, a | b?\nSay `why`.",
            "chosen": f"*{place}*\u2028" + "word " * 100,
            "rejected": "<b>no</b> [link](http://x) $5$ snake_case _it_",
            "chosen_reward": -3.0 + place / 10,
            "rejected_reward": 1.0,
        }
        for place in range(25)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (run / "errors.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def made_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes each run once for all tests, which copy it."""
    folder = tmp_path_factory.mktemp("made_runs")

    @cache
    def made(sets: tuple[tuple[str, float], ...], seed: int, bare: bool) -> Path:
        run = folder / str(len(list(folder.iterdir())))
        write_run(run, dict(sets), seed, bare=bare)
        return run

    return made


def write_run(run: Path, sets: dict[str, float], seed: int, *, bare: bool) -> None:
    """The files of a run that reports read; a bare run was not evaluated, and has neither margins nor events."""
    run.mkdir()
    model = {"backbone": "world-decoder", "objective": None if bare else APLOT}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": {"train": "pairs.jsonl"}}))
    record = {"command": ["aplot", "fit", "--config", "conf/quickstart.yaml"], "git_commit": "0123abc"}
    (run / "run.json").write_text(json.dumps(record))
    if bare:
        null = {name: summarise_set(None) for name in sets}
        figures = {"id": null.pop("id"), "ood": null, "ood_mean": {"accuracy": None}}
        write_metrics(run, figures)
        return
    write_figures(run, sets, seed)
    write_events(run, sets)
    write_margins(run)
    write_errors(run)


@pytest.fixture
def make_run(tmp_path: Path, made_runs: Callable[..., Path]) -> Callable[..., Path]:
    """Puts a run directory below tmp_path."""

    def make(name: str = "aplot", *, sets: dict[str, float] = SETS, seed: int = 0, bare: bool = False) -> Path:
        return shutil.copytree(made_runs(tuple(sets.items()), seed, bare), tmp_path / name)

    return make
