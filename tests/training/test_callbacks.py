"""Throughput that counts training only, and the table of margins."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SLOW = 0.1
PROBE = "tests.training.probes.SlowValidation"


def test_throughput_counts_pairs_and_leaves_validation_out(laboratory, tmp_path: Path) -> None:
    """Two validations sleep: far longer in total than training's share of the wall clock may be."""
    options = {
        "trainer.max_steps": 12,
        "trainer.val_check_interval": 4,
        "checkpoint_every_n_steps": 1,
        "trainer.callbacks": [{"class_path": PROBE, "init_args": {"seconds": SLOW}}],
        "data.micro_batch_size": 32,
        "data.ood": {},
    }
    start = time.perf_counter()
    assert laboratory("fit", tmp_path / "run", options) == 0
    wall = time.perf_counter() - start
    train = json.loads((tmp_path / "run" / "metrics.json").read_text())["train"]
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    trained = 331 - report["id"]["pairs"] - report["validation"]["pairs"]
    last_batch = trained - 8 * 32
    pairs = trained + 3 * 32  # one epoch of nine steps, and three steps of the next
    assert (train["steps"], train["pairs"]) == (12, pairs)
    assert last_batch < 32
    # the first step is not timed, so its pairs are not counted in the rate either
    assert train["pairs_per_second"] * train["seconds"] == pytest.approx(pairs - 32, rel=1e-9)
    batches = 2 + 2  # of validation and id, each in 35 to 60 pairs
    validations = 3
    assert 0 < train["seconds"] < wall - SLOW * validations * batches
    assert train["tokens_per_second"] * train["seconds"] > 2 * 10 * (pairs - 32)  # a response has more than ten


def test_the_table_of_margins_is_what_tensorboard_summarises(finished_run: Path) -> None:
    table = pq.read_table(finished_run / "diagnostics" / "margins.parquet").to_pydict()
    columns = {name: np.asarray(values) for name, values in table.items()}
    events = EventAccumulator(str(finished_run), size_guidance={"scalars": 0}).Reload()
    logged = {
        name: {point.step + 1: point.value for point in events.Scalars(f"margin/{name}")}
        for name in ("mean", "p10", "hardness_correlation")
    }
    assert set(columns["step"]) == set(range(1, 19))
    for step in (1, 5, 18):
        own = {name: values[columns["step"] == step] for name, values in columns.items()}
        assert len(own["margin"]) <= 32
        assert logged["mean"][step] == pytest.approx(own["margin"].mean(), rel=1e-5)
        assert logged["p10"][step] == pytest.approx(np.quantile(own["margin"], 0.1), rel=1e-4)
        expected = spearmanr(own["margin"], own["cost"]).statistic
        assert logged["hardness_correlation"][step] == pytest.approx(expected, abs=1e-3)
        # equation 3 of docs/method.md, on the pair's own cell
        cost = 0.9 * (1 - 1 / (1 + np.exp(-np.abs(own["gap"])))) + 0.1 * own["similarity"]
        np.testing.assert_allclose(own["cost"], cost, atol=1e-5)
