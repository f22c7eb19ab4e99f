"""The tidy frames that every report is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aplot_lightning.evaluation.report import read_run
from aplot_lightning.evaluation.report.frame import correct_frame, metrics_frame, paired, set_kinds
from aplot_lightning.evaluation.report.groups import Group

MakeRun = Callable[..., Path]


def with_pairs(run: Path, ids: list[str], gaps: list[float], targets: list[float]) -> Group:
    """A group of one run whose ID set has these pairs."""
    columns = {
        "id": ids,
        "prompt": np.array([len(each) for each in ids]),
        "chosen_reward": np.array(gaps),
        "rejected_reward": np.zeros(len(gaps)),
        "target": np.array(targets),
    }
    pq.write_table(pa.table(columns), run / "predictions" / "id.parquet")
    return Group(run.name, {0: read_run(run)})


def test_metrics_have_a_row_for_each_set_subset_and_metric(make_run: MakeRun) -> None:
    run = read_run(make_run())
    frame = metrics_frame([Group("aplot", {7: run})])
    assert not frame.duplicated(["group", "seed", "kind", "set", "subset", "metric"]).any()
    rows = frame.set_index(["group", "seed", "set", "subset", "metric"])["value"]
    entry = run.metrics["ood"]["new_topics"]
    assert rows["aplot", 7, "new_topics", "", "ece"] == entry["ece"]
    assert rows["aplot", 7, "new_topics", "", "ci95_high"] == entry["ci95"][1]
    assert rows["aplot", 7, "new_topics", "part_1", "accuracy"] == entry["subsets"]["part_1"]["accuracy"]
    assert rows["aplot", 7, "train", "", "seconds"] == 92.5
    assert list(set_kinds(frame)) == ["validation", "id", "harder_pairs", "new_topics", "reversed_cue"]


def test_ties_are_wrong_and_undecided_pairs_are_left_out(make_run: MakeRun) -> None:
    group = with_pairs(make_run("one"), ["a", "bb", "ccc", "dddd"], [1.0, 0.0, -1.0, 1.0], [1.0, 1.0, 0.0, 0.5])
    assert correct_frame(group, "id")[0].tolist() == [1.0, 0.0, 1.0]


def test_the_pairs_of_one_comparison_are_paired_by_position(make_run: MakeRun) -> None:
    one = with_pairs(make_run("one"), ["a", "a", "bb"], [1.0, -1.0, 1.0], [1.0] * 3)
    other = with_pairs(make_run("other"), ["bb", "a", "a", "ccc"], [-1.0, 1.0, 1.0, 1.0], [1.0] * 4)
    difference = paired(correct_frame(one, "id"), correct_frame(other, "id"))
    assert difference[0].tolist() == [0.0, -1.0, 1.0]
    assert difference.index.get_level_values("id").tolist() == ["a", "a", "bb"]


def test_a_set_without_predictions_has_no_frame(make_run: MakeRun) -> None:
    group = Group("bare", {0: read_run(make_run("bare", bare=True))})
    assert correct_frame(group, "id") is None
    assert paired(None, None) is None
