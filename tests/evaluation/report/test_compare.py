from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.report import compare_runs, read_run
from aplot_lightning.evaluation.statistics import paired_difference

MakeRun = Callable[..., Path]


def test_accuracies_are_those_of_metrics_json(make_run: MakeRun) -> None:
    paths = [make_run("bt", seed=1), make_run("aplot", seed=2)]
    table = compare_runs(paths)
    assert table.runs == ["bt", "aplot"]
    assert [row.name for row in table.rows] == ["id", "new_topics", "reversed_cue", "harder_pairs", "OOD mean"]
    assert table.notes == []
    for place, path in enumerate(paths):
        metrics = read_run(path).metrics
        for row in table.rows[:-1]:
            entry = metrics["id"] if row.name == "id" else metrics["ood"][row.name]
            found = row.accuracies[place]
            assert found is not None
            assert (found.value, list(found.interval), found.pairs) == (entry["accuracy"], entry["ci95"], 240)
        assert table.rows[-1].accuracies[place].value == pytest.approx(metrics["ood_mean"]["accuracy"])


def test_differences_are_paired(make_run: MakeRun) -> None:
    paths = [make_run("bt", seed=1), make_run("aplot", seed=2), make_run("same", seed=1)]
    table = compare_runs(paths)
    columns = [read_run(path).predictions("new_topics") for path in paths]
    correct = [column["chosen_reward"] > column["rejected_reward"] for column in columns]
    expected = paired_difference(correct[1], correct[0], columns[0]["prompt"])
    found = table.rows[1].differences
    assert found[0].value == pytest.approx(expected.difference)
    assert found[0].interval == pytest.approx(expected.interval)
    assert (found[1].value, found[1].interval) == (0.0, (0.0, 0.0))
    mean = table.rows[-1]
    assert mean.differences[0].value == pytest.approx(mean.accuracies[1].value - mean.accuracies[0].value)


def cut(path: Path, rows: list[int]) -> None:
    table = pq.read_table(path)
    pq.write_table(table.take(rows), path)


def test_differences_are_on_common_pairs_and_a_note_says_so(make_run: MakeRun) -> None:
    first, second = make_run("bt", seed=1), make_run("aplot", seed=2)
    kept = np.random.default_rng(0).permutation(240)[:100].tolist()
    cut(second / "predictions" / "id.parquet", kept)
    table = compare_runs([first, second])
    assert table.rows[0].differences[0].pairs == 100
    assert table.notes == ["id: bt has 240 pairs and aplot 100; their difference is on the 100 that both have."]
    assert table.notes[0] in table.text()


def test_equal_ids_with_other_prompts_are_other_pairs(make_run: MakeRun) -> None:
    first, second = make_run("bt", seed=1), make_run("aplot", seed=2)
    path = second / "predictions" / "id.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("prompt")
    pq.write_table(table.set_column(place, "prompt", [table["prompt"].to_numpy() + 1]), path)
    found = compare_runs([first, second])
    assert found.rows[0].differences == [None]
    assert "on the 0 that both have" in found.notes[0]


def test_sets_that_not_every_run_has_are_left_out_of_the_mean(make_run: MakeRun) -> None:
    first = make_run("bt", sets={"id": 0.8, "a": 0.7, "only_bt": 0.2})
    second = make_run("aplot", sets={"id": 0.8, "a": 0.6, "only_aplot": 0.9})
    table = compare_runs([first, second])
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["id", "a", "only_bt", "only_aplot", "OOD mean"]
    assert rows["only_bt"].accuracies[1] is None
    assert rows["only_bt"].differences == [None]
    assert rows["only_aplot"].accuracies[0] is None
    assert rows["OOD mean"].accuracies == rows["a"].accuracies
    assert table.notes == ["OOD mean leaves out only_bt, only_aplot, which not every run has."]


def test_a_run_that_was_not_evaluated_does_not_spoil_the_others(make_run: MakeRun) -> None:
    paths = [make_run("bt", seed=1), make_run("bare", bare=True), make_run("aplot", seed=2)]
    table = compare_runs(paths)
    for row in table.rows:
        assert row.accuracies[1] is None
        assert row.differences[0] is None
        assert row.accuracies[0] is not None
        assert row.differences[1] is not None
    assert table.notes == ["bare was not evaluated."]
    reverse = compare_runs(paths[1:])
    assert [row.differences for row in reverse.rows] == [[None]] * 5


def test_no_ood_sets_no_mean(make_run: MakeRun) -> None:
    assert [row.name for row in compare_runs([make_run(sets={"id": 0.8})]).rows] == ["id"]


def test_text_and_markdown(make_run: MakeRun) -> None:
    table = compare_runs([make_run("bt", seed=1), make_run("a|b", seed=2)])
    header, rule, first, *_ = table.text().split("\n")
    assert header.split() == ["set", "pairs", "bt", "a|b", "a|b", "-", "bt"]
    assert set(rule) == {"-"}
    assert first.startswith("id ")
    accuracy = table.rows[0].accuracies[0]
    low, high = accuracy.interval
    assert f"{accuracy.value:.3f} [{low:.3f}, {high:.3f}]" in first
    lines = table.markdown().split("\n")
    assert lines[0] == r"| set | pairs | bt | a\|b | a\|b − bt |"
    assert len(lines) == 2 + 5


def test_no_run_is_a_mistake() -> None:
    with pytest.raises(UserError, match="name one or more run directories"):
        compare_runs([])
