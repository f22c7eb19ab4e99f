from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.report import compare_runs, read_run, runs_text
from aplot_lightning.evaluation.report.rendering import markdown_table
from aplot_lightning.evaluation.report.run_page import runs_table
from aplot_lightning.evaluation.statistics import paired_difference

MakeRun = Callable[..., Path]


def test_accuracies_are_those_of_metrics_json(make_run: MakeRun) -> None:
    paths = [make_run("bt", seed=1), make_run("aplot", seed=2)]
    results = compare_runs(paths)
    assert list(results.groups) == ["bt", "aplot"]
    assert list(results.sets) == ["id", "harder_pairs", "new_topics", "reversed_cue", "OOD mean"]
    assert results.notes == []
    for path in paths:
        metrics = read_run(path).metrics
        for name in ("id", *metrics["ood"]):
            entry = metrics["id"] if name == "id" else metrics["ood"][name]
            found = results.result(path.name, name).accuracy
            assert (found.value, list(found.interval), found.pairs) == (entry["accuracy"], entry["ci95"], 240)
        mean = results.result(path.name, "OOD mean").accuracy
        assert mean.value == pytest.approx(metrics["ood_mean"]["accuracy"])


def test_differences_are_paired(make_run: MakeRun) -> None:
    paths = [make_run("bt", seed=1), make_run("aplot", seed=2), make_run("same", seed=1)]
    results = compare_runs(paths)
    columns = [read_run(path).predictions("new_topics") for path in paths]
    correct = [column["chosen_reward"] > column["rejected_reward"] for column in columns]
    expected = paired_difference(correct[1], correct[0], columns[0]["prompt"])
    found = results.result("aplot", "new_topics").difference
    assert found.value == pytest.approx(expected.difference)
    assert found.interval == pytest.approx(expected.interval)
    same = results.result("same", "new_topics").difference
    assert (same.value, same.interval) == (0.0, (0.0, 0.0))
    one, other = (results.result(run, "OOD mean") for run in ("bt", "aplot"))
    assert other.difference.value == pytest.approx(other.accuracy.value - one.accuracy.value)


def cut(path: Path, rows: list[int]) -> None:
    table = pq.read_table(path)
    pq.write_table(table.take(rows), path)


def test_differences_are_on_common_pairs_and_a_note_gives_their_number(make_run: MakeRun) -> None:
    first, second = make_run("bt", seed=1), make_run("aplot", seed=2)
    kept = np.random.default_rng(0).permutation(240)[:100].tolist()
    cut(second / "predictions" / "id.parquet", kept)
    results = compare_runs([first, second])
    assert results.result("aplot", "id").difference.pairs == 100
    assert results.notes == ["id: bt has 240 pairs and aplot 100; their difference is on the 100 that both have."]
    assert results.notes[0] in runs_text(results)


def test_pairs_with_equal_ids_and_other_prompts_are_different_pairs(make_run: MakeRun) -> None:
    first, second = make_run("bt", seed=1), make_run("aplot", seed=2)
    path = second / "predictions" / "id.parquet"
    table = pq.read_table(path)
    index = table.column_names.index("prompt")
    pq.write_table(table.set_column(index, "prompt", [table["prompt"].to_numpy() + 1]), path)
    results = compare_runs([first, second])
    assert results.result("aplot", "id").difference is None
    assert "on the 0 that both have" in results.notes[0]


def test_sets_that_not_every_run_has_are_left_out_of_the_mean(make_run: MakeRun) -> None:
    first = make_run("bt", sets={"id": 0.8, "a": 0.7, "only_bt": 0.2})
    second = make_run("aplot", sets={"id": 0.8, "a": 0.6, "only_aplot": 0.9})
    results = compare_runs([first, second])
    assert list(results.sets) == ["id", "a", "only_aplot", "only_bt", "OOD mean"]
    assert results.result("aplot", "only_bt").accuracy is None
    assert results.result("aplot", "only_bt").difference is None
    assert results.result("bt", "only_aplot").accuracy is None
    for run in ("bt", "aplot"):
        assert results.result(run, "OOD mean").accuracy == results.result(run, "a").accuracy
    assert results.notes == ["OOD mean leaves out only_aplot, only_bt, which not every run has."]


def test_a_run_that_was_not_evaluated_leaves_the_others_as_they_are(make_run: MakeRun) -> None:
    paths = [make_run("bt", seed=1), make_run("bare", bare=True), make_run("aplot", seed=2)]
    results = compare_runs(paths)
    for name in results.sets:
        bare, aplot = results.result("bare", name), results.result("aplot", name)
        assert bare.accuracy is None
        assert bare.difference is None
        assert results.result("bt", name).accuracy is not None
        assert aplot.difference is not None
    assert results.notes == ["bare was not evaluated."]
    reverse = compare_runs(paths[1:])
    assert [reverse.result("aplot", name).difference for name in reverse.sets] == [None] * 5


def test_without_ood_sets_there_is_no_mean(make_run: MakeRun) -> None:
    assert list(compare_runs([make_run(sets={"id": 0.8})]).sets) == ["id"]


def test_the_same_run_twice_does_not_differ_from_itself(make_run: MakeRun) -> None:
    run = make_run()
    results = compare_runs([run, run])
    assert list(results.groups) == ["aplot", "aplot again"]
    assert results.result("aplot again", "id").difference.value == 0


def test_text_and_markdown(make_run: MakeRun) -> None:
    results = compare_runs([make_run("bt", seed=1), make_run("a|b", seed=2)])
    header, rule, first, *_ = runs_text(results).split("\n")
    assert header.split() == ["set", "pairs", "bt", "a|b", "a|b", "-", "bt"]
    assert set(rule) == {"-"}
    assert first.startswith("id ")
    accuracy = results.result("bt", "id").accuracy
    low, high = accuracy.interval
    assert f"{accuracy.value:.3f} [{low:.3f}, {high:.3f}]" in first
    lines = markdown_table(runs_table(results, minus="−")).split("\n")
    assert lines[0] == r"| set | pairs | bt | a\|b | a\|b − bt |"
    assert len(lines) == 2 + 5


def test_no_run_is_a_user_error() -> None:
    with pytest.raises(UserError, match="name one or more run directories"):
        compare_runs([])
