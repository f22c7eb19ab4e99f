from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aplot_lightning.evaluation.metrics import COLUMNS, PairPredictions, ood_mean, set_metrics, summarise_set
from aplot_lightning.evaluation.statistics import bootstrap_interval

NAMES = {
    "accuracy", "pairs", "log_loss", "ece", "hard_accuracy", "longer_chosen_accuracy", "shorter_chosen_accuracy",
    "length_correlation", "mean_gap", "auroc",
}  # fmt: skip


def metrics_of(chosen: Any, rejected: Any, **columns: Any) -> dict[str, float | None]:
    n = len(chosen)
    given = {
        "targets": [1.0] * n,
        "chosen_characters": list(range(1, n + 1)),
        "rejected_characters": [3] * n,
        "similarity": [0.5] * n,
    } | columns
    tensors = {name: torch.as_tensor(value) for name, value in given.items()}
    return set_metrics(torch.as_tensor(chosen), torch.as_tensor(rejected), **tensors)


def slow_metrics(
    chosen: Any, rejected: Any, targets: Any, long: Any, short: Any, alike: Any
) -> dict[str, float | None]:
    """Every metric again, one pair at a time."""
    rows = []
    losses = []
    for c, r, t, lc, lr, s in zip(chosen, rejected, targets, long, short, alike, strict=True):
        p = 1 / (1 + math.exp(-(c - r)))
        losses.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
        if t > 0.5:
            rows.append((c > r, max(p, 1 - p), abs(c - r), lc - lr, s))
        elif t < 0.5:
            rows.append((r > c, max(p, 1 - p), abs(c - r), lr - lc, s))

    def mean(values: list[Any]) -> float | None:
        return sum(values) / len(values) if values else None

    ece = 0.0
    for low in range(15):
        inside = [row for row in rows if low / 15 <= row[1] < (low + 1) / 15 or (low == 14 and row[1] == 1)]
        if inside:
            ece += len(inside) / len(rows) * abs(mean([row[0] for row in inside]) - mean([row[1] for row in inside]))
    good, bad = [row[2] for row in rows if row[0]], [row[2] for row in rows if not row[0]]
    wins = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    hardest = sorted(range(len(rows)), key=lambda i: (-rows[i][4], i))[: -(-len(rows) // 3)]
    rewards, lengths = [*chosen, *rejected], [*long, *short]
    constant = len(set(rewards)) < 2 or len(set(lengths)) < 2
    return {
        "accuracy": mean([row[0] for row in rows]),
        "pairs": len(losses),
        "log_loss": mean(losses),
        "ece": ece if rows else None,
        "hard_accuracy": mean([rows[i][0] for i in hardest]),
        "longer_chosen_accuracy": mean([row[0] for row in rows if row[3] > 0]),
        "shorter_chosen_accuracy": mean([row[0] for row in rows if row[3] < 0]),
        "length_correlation": None if constant else float(np.corrcoef(rewards, lengths)[0, 1]),
        "mean_gap": mean([c - r for c, r in zip(chosen, rejected, strict=True)]),
        "auroc": mean(wins),
    }


# rewards on a grid of 1/8, so that ties occur and no confidence lies on the edge of a bin by rounding
reward = st.integers(-24, 24).map(lambda k: k / 8)
pair = st.tuples(
    reward, reward, st.sampled_from([1.0, 1.0, 0.0, 0.25, 0.5, 0.75]), st.integers(1, 9), st.integers(1, 9),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(pair, max_size=25))
def test_set_metrics_agree_with_a_loop_over_pairs(pairs: list[tuple[float, ...]]) -> None:
    columns = [list(column) for column in zip(*pairs, strict=True)] if pairs else [[] for _ in range(6)]
    chosen, rejected, targets, long, short, alike = columns
    found = metrics_of(
        torch.tensor(chosen, dtype=torch.float32),
        torch.tensor(rejected, dtype=torch.float32),
        targets=torch.tensor(targets, dtype=torch.float32),
        chosen_characters=torch.tensor(long, dtype=torch.int64),
        rejected_characters=torch.tensor(short, dtype=torch.int64),
        similarity=torch.tensor(alike, dtype=torch.float32),
    )
    expected = slow_metrics(*columns)
    assert set(found) == set(expected) == NAMES
    for name, value in expected.items():
        close = 1e-6 if name == "auroc" else 1e-9  # torchmetrics integrates in float32
        assert found[name] == (None if value is None else pytest.approx(value, abs=close)), name


def test_no_pairs_is_none_and_not_nan() -> None:
    empty = torch.empty(0)
    found = metrics_of(
        empty, empty, targets=empty, chosen_characters=empty.long(), rejected_characters=empty.long(), similarity=empty
    )
    assert found == dict.fromkeys(NAMES) | {"pairs": 0}


def test_a_tie_is_wrong() -> None:
    assert metrics_of([1.0, 2.0], [1.0, 1.0])["accuracy"] == 0.5


def test_an_undecided_pair_is_in_the_loss_only() -> None:
    plain = metrics_of([2.0, 0.0], [1.0, 1.0])
    found = metrics_of([2.0, 0.0, 4.0], [1.0, 1.0, 1.0], targets=[1.0, 1.0, 0.5])
    for name in ("accuracy", "ece", "hard_accuracy", "auroc"):
        assert found[name] == plain[name]
    assert found["pairs"] == 3
    assert found["mean_gap"] == pytest.approx(1.0)
    half = 0.5 * (math.log1p(math.exp(-3)) + math.log1p(math.exp(3)))
    assert 3 * found["log_loss"] == pytest.approx(2 * plain["log_loss"] + half)


def test_swapping_the_sides_of_a_soft_pair_changes_nothing_but_the_sign_of_the_gap() -> None:
    random = np.random.default_rng(0)
    chosen, rejected, targets = random.normal(size=20), random.normal(size=20), random.random(20)
    long, short, alike = random.integers(1, 99, 20), random.integers(1, 99, 20), random.random(20)
    one = metrics_of(
        chosen, rejected, targets=targets, chosen_characters=long, rejected_characters=short, similarity=alike
    )
    other = metrics_of(
        rejected, chosen, targets=1 - targets, chosen_characters=short, rejected_characters=long, similarity=alike
    )
    assert one.pop("mean_gap") == pytest.approx(-other.pop("mean_gap"))
    assert one == pytest.approx(other)


def test_large_gaps_stay_apart_and_finite() -> None:
    # sigmoids of 40, 60 and 700 are all 1 in float64; their order still counts
    found = metrics_of([40.0, 60.0, -700.0], [0.0, 0.0, 0.0])
    assert found["auroc"] == 0.0
    assert found["log_loss"] == pytest.approx(700 / 3)
    assert found["ece"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_that_are_not_finite_give_none(value: float) -> None:
    found = metrics_of([value, 1.0, 0.0], [0.0, 0.0, 1.0])
    assert {name for name in NAMES if found[name] is None} >= {"mean_gap", "ece", "auroc", "length_correlation"}
    json.dumps(found, allow_nan=False)


def test_float32_rewards_are_reduced_in_float64() -> None:
    gaps = torch.full((100_000,), 0.1)
    assert metrics_of(gaps, torch.zeros_like(gaps))["mean_gap"] == pytest.approx(float(gaps[0]), abs=1e-15)


def test_equal_rewards_have_no_length_correlation() -> None:
    assert metrics_of([0.1] * 7, [0.1] * 7)["length_correlation"] is None


def columns(n: int, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "index": torch.randperm(n, generator=random),
        "prompt": torch.randint(-(2**62), 2**62, (n,), generator=random),
        "chosen_reward": torch.randn(n, generator=random),
        "rejected_reward": torch.randn(n, generator=random),
        "target": torch.rand(n, generator=random),
        "chosen_characters": torch.randint(1, 99, (n,), generator=random),
        "rejected_characters": torch.randint(1, 99, (n,), generator=random),
        "similarity": torch.rand(n, generator=random),
    }


def take(table: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
    return {name: column[rows] for name, column in table.items()}


def test_predictions_come_back_sorted_whole_and_in_their_types() -> None:
    table, metric = columns(10), PairPredictions()
    for start in range(0, 10, 3):
        metric.update(**take(table, slice(start, start + 3)), margin=torch.zeros(1), weight=None)
    found = metric.table()
    expected = take(table, torch.argsort(table["index"]))
    assert {name: column.dtype for name, column in found.items()} == COLUMNS
    for name, column in expected.items():
        torch.testing.assert_close(found[name], column, rtol=0, atol=0)
    assert found["pair"].tolist() == [0] * 10
    assert metric.compute() == set_metrics(
        expected["chosen_reward"],
        expected["rejected_reward"],
        targets=expected["target"],
        chosen_characters=expected["chosen_characters"],
        rejected_characters=expected["rejected_characters"],
        similarity=expected["similarity"],
    )


def test_a_pair_that_comes_twice_counts_once() -> None:
    table = columns(6)
    once, twice = PairPredictions(), PairPredictions()
    once.update(**table)
    twice.update(**take(table, slice(0, 4)))
    twice.update(**take(table, slice(2, 6)))
    for name, column in once.table().items():
        torch.testing.assert_close(twice.table()[name], column, rtol=0, atol=0)


def test_all_pairs_of_a_comparison_count() -> None:
    table = columns(5) | {"index": torch.tensor([4, 2, 4, 4, 2])}
    metric = PairPredictions()
    metric.update(**table)
    metric.update(**table)
    found = metric.table()
    assert found["index"].tolist() == [2, 2, 4, 4, 4]
    assert found["pair"].tolist() == [0, 1, 0, 1, 2]
    torch.testing.assert_close(found["chosen_reward"], table["chosen_reward"][[1, 4, 0, 2, 3]])


def test_no_target_is_a_plain_pair_and_bf16_rewards_are_taken() -> None:
    table = columns(4)
    del table["target"]
    metric = PairPredictions()
    metric.update(**table | {"chosen_reward": table["chosen_reward"].bfloat16()})
    assert metric.table()["target"].tolist() == [1.0] * 4
    assert metric.table()["chosen_reward"].dtype == torch.float32


def test_nothing_collected_is_an_empty_table() -> None:
    metric = PairPredictions()
    assert {name: (column.dtype, column.shape) for name, column in metric.table().items()} == {
        name: (dtype, (0,)) for name, dtype in COLUMNS.items()
    }
    metric.update(**columns(0))
    assert metric.compute()["accuracy"] is None
    metric.update(**columns(3))
    assert metric.compute()["pairs"] == 3
    metric.reset()
    assert len(metric.table()["index"]) == 0


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"similarity must have shape \(3,\) like index, not \(2,\)"):
        PairPredictions().update(**columns(3) | {"similarity": torch.zeros(2)})


RANKS = """
import os, sys, torch
from aplot_lightning.evaluation.metrics import PairPredictions
rank, store, data = int(sys.argv[1]), *sys.argv[2:4]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
table, cases = torch.load(data)
results = []
for shares in cases:
    metric = PairPredictions()
    for rows in shares[rank]:
        metric.update(**{name: column[rows] for name, column in table.items()})
    results.append((metric.table(), metric.compute(), metric.table(), sum(len(part) for part in metric.index)))
torch.save(results, f"{store}.{rank}")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)  # all is written; PyTorch's threads have been seen to abort the interpreter's own exit
"""


def test_two_ranks_give_the_table_of_one(tmp_path: Path) -> None:
    cases: list[list[list[list[int]]]] = [
        [[[0, 2, 4], [6]], [[1, 3], [5, 0]]],  # uneven, and rank 1 repeats pair 0, as padding samplers do
        [[[0, 1, 2], [3, 4, 5, 6]], []],  # rank 1 has nothing
        [[], [[6, 5, 4, 3, 2, 1, 0]]],  # rank 0 has nothing
        [[], []],
    ]
    table = columns(7)
    torch.save((table, cases), tmp_path / "data.pt")
    arguments = [str(tmp_path / "store"), str(tmp_path / "data.pt")]
    ranks = [subprocess.Popen([sys.executable, "-c", RANKS, str(rank), *arguments]) for rank in range(2)]
    assert [process.wait(timeout=60) for process in ranks] == [0, 0]
    for rank in range(2):
        for shares, (first, metrics, second, own) in zip(cases, torch.load(tmp_path / f"store.{rank}"), strict=True):
            alone = PairPredictions()
            alone.update(**take(table, slice(0, 7 if any(shares) else 0)))
            assert metrics == alone.compute()
            assert own == sum(map(len, shares[rank]))  # what the rank has collected is its own again
            for name, column in alone.table().items():
                torch.testing.assert_close(first[name], column, rtol=0, atol=0)
                torch.testing.assert_close(second[name], column, rtol=0, atol=0)


def test_the_entry_of_a_set_has_an_interval_over_prompts_and_subsets() -> None:
    table = columns(60) | {"prompt": torch.arange(60) // 3}
    metric = PairPredictions()
    metric.update(**table | {"index": torch.arange(60)})
    table = metric.table()
    subsets = ["easy", "hard", ""] * 20
    entry = summarise_set(table, subsets)
    assert list(entry)[:3] == ["accuracy", "ci95", "pairs"]
    assert set(entry) == NAMES | {"ci95", "subsets"}
    assert {name: entry[name] for name in NAMES} == metric.compute()
    correct = ((table["chosen_reward"] > table["rejected_reward"]) == (table["target"] > 0.5)).numpy()
    assert entry["ci95"] == list(bootstrap_interval(correct, table["prompt"].numpy()))
    assert list(entry["subsets"]) == ["easy", "hard"]
    assert entry["subsets"]["hard"] == {
        "accuracy": pytest.approx(correct[1::3].mean()),
        "ci95": list(bootstrap_interval(correct[1::3], np.arange(20))),
        "pairs": 20,
    }
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_the_entry_of_a_set_that_was_not_evaluated_is_null() -> None:
    assert summarise_set(None) == dict.fromkeys(NAMES | {"ci95"}) | {"pairs": 0}


def test_subsets_must_name_every_pair() -> None:
    with pytest.raises(ValueError, match="2 subset names for 0 pairs"):
        summarise_set(None, ["a", "b"])


def test_ood_mean_is_unweighted_and_over_all_sets() -> None:
    sets = {"a": {"accuracy": 0.5, "pairs": 1, "ece": 0.1}, "b": {"accuracy": 0.8, "pairs": 1000, "ece": None}}
    assert ood_mean(sets) == pytest.approx(0.65)
    assert ood_mean(sets, "ece") is None
    assert ood_mean(sets, "auroc") is None
    assert ood_mean({}) is None
