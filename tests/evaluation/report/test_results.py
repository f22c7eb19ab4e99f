"""Groups of runs: what is paired with what, and that every figure is the one of the runs' own files."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.report import (
    GroupResults,
    compare_groups,
    compare_runs,
    groups_page,
    groups_text,
    read_run,
    robustness_table,
    sentences,
    write_csv,
)
from aplot_lightning.evaluation.statistics import holm

MakeRun = Callable[..., Path]
OOD = ["new_topics", "reversed_cue", "harder_pairs"]


def correct(run: Path, name: str) -> np.ndarray:
    table = pq.read_table(run / "predictions" / f"{name}.parquet")
    return (table["chosen_reward"].to_numpy() > table["rejected_reward"].to_numpy()).astype(float)


def set_seed(run: Path, seed: int) -> Path:
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "seed_everything": seed}))
    return run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("groups")


@pytest.fixture
def groups(make_run: MakeRun, kept: Path) -> dict[str, list[Path]]:
    """Three groups of three seeds; aplot is much better on ID. Made once: leave them as they are."""
    better = {"id": 0.95, "new_topics": 0.75, "reversed_cue": 0.3, "harder_pairs": 0.55}
    for place, group in enumerate(("bt", "aplot", "margin") if not (kept / "bt").exists() else ()):
        for k in range(3):
            options = {"sets": better} if group == "aplot" else {}
            run = set_seed(make_run(f"{group}/{k}", seed=10 * place + k, **options), k)
            shutil.copytree(run, kept / group / str(k))
    return {group: [kept / group / str(k) for k in range(3)] for group in ("bt", "aplot", "margin")}


@pytest.fixture
def table(groups: dict[str, list[Path]]) -> GroupResults:
    return compare_groups(groups)


def test_figures_are_means_of_the_runs_own(table: GroupResults, groups: dict[str, list[Path]]) -> None:
    assert list(table.sets) == ["validation", "id", *sorted(OOD), "OOD mean"]
    assert table.sets == {
        "validation": "validation",
        "id": "id",
        **dict.fromkeys(OOD, "ood"),
        "OOD mean": "ood_mean",
    }
    for group, paths in groups.items():
        metrics = [read_run(path).metrics for path in paths]
        for name in ("id", *OOD):
            entries = [each["id"] if name == "id" else each["ood"][name] for each in metrics]
            cell = table.result(group, name)
            assert cell.accuracy is not None
            assert cell.accuracy.value == pytest.approx(np.mean([entry["accuracy"] for entry in entries]))
            assert (cell.accuracy.pairs, cell.accuracy.seeds) == (240, 3)
            for metric in ("hard_accuracy", "ece", "log_loss", "length_correlation"):
                values = list(table.values(group, name, metric).values())
                assert np.mean(values) == pytest.approx(np.mean([entry[metric] for entry in entries]))
        mean = table.result(group, "OOD mean")
        assert mean.accuracy is not None
        assert mean.accuracy.value == pytest.approx(np.mean([each["ood_mean"]["accuracy"] for each in metrics]))
        eces = [[each["ood"][name]["ece"] for name in OOD] for each in metrics]
        assert np.mean([*table.values(group, "OOD mean", "ece").values()]) == pytest.approx(np.mean(eces))
    assert table.notes == []


def test_one_run_a_group_is_compare_runs(make_run: MakeRun) -> None:
    paths = [make_run("bt", seed=1), make_run("aplot", seed=2)]
    known, found = compare_runs(paths), compare_groups({path.name: [path] for path in paths})
    for key, result in known.results.items():
        assert found.results[key] == result
    difference = found.result("aplot", "id").difference
    assert difference is not None
    assert difference.p_value == difference.p_prompts
    note = "Every group has one seed: intervals and p-values are over prompts only and say nothing of other seeds."
    assert note in groups_text(found)
    assert note in groups_page(found)


def test_differences_are_of_the_same_seeds_and_pairs(table: GroupResults, groups: dict[str, list[Path]]) -> None:
    differences = np.stack(
        [correct(a, "id") - correct(b, "id") for a, b in zip(groups["margin"], groups["bt"], strict=True)]
    )
    found = table.result("margin", "id").difference
    assert found is not None
    assert found.value == pytest.approx(differences.mean())
    prompts = pq.read_table(groups["bt"][0] / "predictions" / "id.parquet")["prompt"].to_numpy()
    sums = np.array([differences.mean(axis=0)[prompts == prompt].sum() for prompt in np.unique(prompts)])
    flips = np.random.default_rng(0).choice([-1, 1], (20_000, len(sums)))
    expected = np.mean(np.abs(flips @ sums) >= abs(sums.sum()) - 1e-9)
    assert found.p_prompts == pytest.approx(expected, abs=0.03)
    low, high = found.interval or (0, 0)
    over_seeds = stats.ttest_1samp(differences.mean(axis=1), 0).confidence_interval()
    assert low < found.value < high
    assert high - low < over_seeds.high - over_seeds.low  # more is known than from three numbers


def test_a_seed_that_is_missing_shifts_no_other(groups: dict[str, list[Path]]) -> None:
    found = compare_groups({"bt": groups["bt"], "aplot": [groups["aplot"][2], groups["aplot"][1]]})
    cell = found.result("aplot", "id")
    assert cell.difference is not None
    expected = [correct(groups["aplot"][k], "id") - correct(groups["bt"][k], "id") for k in (1, 2)]
    assert cell.difference.seeds == 2
    assert cell.difference.value == pytest.approx(np.mean(expected))
    assert found.notes == ["bt has seeds 0, 1, 2 and aplot 2, 1; their difference is over the 2 that both have."]


def test_runs_of_other_or_unknown_seeds_are_paired_by_place(make_run: MakeRun) -> None:
    bt = [set_seed(make_run(f"bt/{k}", seed=k), k) for k in range(2)]
    aplot = [set_seed(make_run(f"aplot/{k}", seed=9 + k), 9 + k) for k in range(2)]
    found = compare_groups({"bt": bt, "aplot": aplot})
    difference = found.result("aplot", "id").difference
    assert difference is not None
    assert difference.value == pytest.approx(
        np.mean([correct(a, "id") - correct(b, "id") for a, b in zip(aplot, bt, strict=True)])
    )
    assert found.notes == ["Groups do not have the same seeds; their runs are paired in the order given."]
    unknown = [make_run(f"other/{k}", seed=k) for k in range(2)]
    assert compare_groups({"bt": unknown, "same": unknown}).notes == []


def test_holm_is_over_id_and_ood_mean_of_all_groups(table: GroupResults) -> None:
    tested = [(group, name) for group in ("aplot", "margin") for name in ("id", "OOD mean")]
    differences = [table.result(*each).difference for each in tested]
    assert [each.p_holm for each in differences] == holm([each.p_value for each in differences])
    assert all(table.result("aplot", name).difference.p_holm is None for name in ("validation", *OOD))
    assert differences[0].p_holm < 0.01 < differences[2].p_value
    assert sentences(table)[0] == (
        f"ID: of 2 others 1 differs from bt after Holm correction; better: aplot (+{differences[0].value:.3f})."
    )
    assert sentences(table)[1] == "OOD mean: of 2 others none differs from bt after Holm correction."
    assert "corrected for the 4 differences" in groups_page(table)


def test_sentences_name_what_is_worse_and_a_single_other(groups: dict[str, list[Path]]) -> None:
    table = compare_groups({name: groups[name] for name in ("aplot", "bt", "margin")})
    assert "2 differ from aplot after Holm correction; worse: bt (-0." in sentences(table)[0]
    alone = sentences(compare_groups({name: groups[name] for name in ("bt", "aplot")}))
    assert alone[0].startswith("ID: aplot differs from bt after Holm correction (+0.1")
    assert alone[1].startswith("OOD mean: aplot does not differ from bt after Holm correction (")


def test_pairs_that_not_all_have_are_left_out_and_a_note_says_so(groups: dict[str, list[Path]], tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(groups["aplot"][1], cut)
    groups["aplot"][1] = cut
    path = groups["aplot"][1] / "predictions" / "id.parquet"
    whole = pq.read_table(path)
    pq.write_table(whole.take(list(range(239, 99, -1))), path)
    found = compare_groups(groups)
    cell = found.result("aplot", "id")
    assert cell.accuracy is not None
    assert cell.difference is not None
    assert cell.accuracy.pairs == cell.difference.pairs == 140
    columns = [correct(groups["aplot"][0], "id")[100:], correct(groups["aplot"][1], "id")[::-1]]
    assert found.values("aplot", "id", "accuracy").keys() == {0, 1, 2}
    expected = np.mean([*columns, correct(groups["aplot"][2], "id")[100:]])
    assert cell.accuracy.value == pytest.approx(expected)
    assert found.notes == ["id: bt has 240 pairs and aplot 140; their difference is on the 140 that both have."]


def test_groups_and_runs_without_figures_do_not_spoil_the_others(make_run: MakeRun) -> None:
    bt = [set_seed(make_run(f"bt/{k}", seed=k), k) for k in range(2)]
    aplot = [set_seed(make_run("aplot/0", seed=5), 0), set_seed(make_run("aplot/1", bare=True), 1)]
    bare = [set_seed(make_run("bare/0", bare=True), 0)]
    found = compare_groups({"bt": bt, "aplot": aplot, "bare": bare})
    assert found.result("bare", "id").accuracy is None
    assert found.result("bare", "OOD mean").difference is None
    for name in ("id", "OOD mean"):
        difference = found.result("aplot", name).difference
        assert difference is not None
        assert difference.seeds == 1
    assert "bare was not evaluated." in found.notes
    assert "id: aplot was evaluated in 1 of its 2 runs." in found.notes
    for text in (groups_text(found), groups_page(found)):
        assert "bare" in text


def test_sets_that_not_every_group_has(make_run: MakeRun) -> None:
    first = make_run("bt", sets={"id": 0.8, "a": 0.7, "only_bt": 0.2})
    second = make_run("aplot", sets={"id": 0.8, "a": 0.6})
    found = compare_groups({"bt": [first], "aplot": [second]})
    assert found.result("aplot", "only_bt").accuracy is None
    mean, own = found.result("aplot", "OOD mean"), found.result("aplot", "a")
    assert mean.accuracy == own.accuracy
    assert found.values("aplot", "OOD mean", "ece") == found.values("aplot", "a", "ece")
    assert found.notes == ["OOD mean leaves out only_bt, which not every group has."]


def test_text_and_markdown(table: GroupResults) -> None:
    header, rule, *rows = groups_text(table).split("\n")
    assert header.split() == ["seeds", "ID", "-", "bt", "p", "(Holm)", "OOD", "mean", "-", "bt", "p", "(Holm)"]
    assert set(rule) == {"-"}
    assert max(map(len, rows)) <= 110
    assert [row.split()[0] for row in rows] == ["bt", "aplot", "margin"]
    page = groups_page(table, ["plots/differences.png"])
    for heading in ("## Answers", "## Accuracy", "## Cost", "## Every set", "### reversed_cue", "## How to read this"):
        assert f"{heading}\n" in page
    assert "### validation (selects)" in page
    assert "(plots/differences.png)" in page
    cell = table.result("aplot", "id")
    assert f"| aplot | 3 | {cell.accuracy.value:.3f} [{cell.accuracy.interval[0]:.3f}," in page
    assert "| 300 | - (no" not in page


def test_names_are_no_markup(make_run: MakeRun) -> None:
    runs = {"b|t": [make_run("bt", seed=1)], "*a*": [make_run("aplot", seed=2)]}
    page = groups_page(compare_groups(runs))
    assert r"b\|t" in page
    assert "| b|t" not in page
    assert r"| \*a\* |" in page


def test_csv_holds_every_value_and_every_statistic(table: GroupResults, tmp_path: Path) -> None:
    values_path, estimates_path = write_csv(table, tmp_path / "new" / "table.csv")
    assert estimates_path.name == "table_estimates.csv"
    with values_path.open(newline="") as file:
        values = {(row["group"], row["seed"], row["set"], row["metric"]): row["value"] for row in csv.DictReader(file)}
    metrics = read_run(table.groups["aplot"][1]).metrics
    assert float(values["aplot", "1", "id", "ece"]) == metrics["id"]["ece"]
    assert float(values["aplot", "1", "reversed_cue", "accuracy"]) == metrics["ood"]["reversed_cue"]["accuracy"]
    assert float(values["aplot", "1", "train", "seconds"]) == 92.5
    assert float(values["aplot", "1", "OOD mean", "accuracy"]) == pytest.approx(metrics["ood_mean"]["accuracy"])
    with estimates_path.open(newline="") as file:
        rows = {(row["group"], row["set"], row["metric"]): row for row in csv.DictReader(file)}
    found = rows["aplot", "OOD mean", "difference"]
    difference = table.result("aplot", "OOD mean").difference
    assert [float(found[key]) for key in ("value", "low", "high")] == [difference.value, *difference.interval]
    assert float(found["p_holm"]) == difference.p_holm
    assert rows["aplot", "reversed_cue", "difference"]["p_holm"] == ""
    assert rows["bt", "id", "accuracy"]["seeds"] == "3"
    assert ("bt", "id", "difference") not in rows


def test_robustness_lays_levels_side_by_side(make_run: MakeRun) -> None:
    levels: dict[float | str, Any] = {
        level: compare_groups(
            {
                "bt": [make_run(f"{level}/bt", seed=1)],
                **({"aplot": [make_run(f"{level}/aplot", seed=2)]} if level else {}),
            }
        )
        for level in (0.0, 0.25)
    }
    found = robustness_table(levels, "label_noise", "id")
    assert (found.axis, found.name, found.levels) == ("label_noise", "id", ["0.0", "0.25"])
    assert found.accuracies["bt"] == [levels[level].result("bt", "id").accuracy for level in (0.0, 0.25)]
    assert found.accuracies["aplot"][0] is None
    assert found.differences["aplot"][1] == levels[0.25].result("aplot", "id").difference
    header, _, bt, aplot = found.table().text().split("\n")
    assert header.split() == ["id,", "label_noise", "0.0", "0.25"]
    assert aplot.split()[:2] == ["aplot", "-"]
    assert found.table().header == ["id, label_noise", "0.0", "0.25"]
    assert f"{found.accuracies['bt'][0].value:.3f}" in bt


def test_mistakes_are_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no group of runs is given"):
        compare_groups({})
    with pytest.raises(UserError, match="aplot: no run is given"):
        compare_groups({"bt": [make_run("bt")], "aplot": []})
    with pytest.raises(UserError, match="is not there"):
        compare_groups({"bt": [tmp_path / "nothing"]})


def test_real_runs(finished_run: Path, tmp_path: Path) -> None:
    """A run beside its copy: nothing differs; and a copy whose answers are all turned round: everything does."""
    turned = tmp_path / "turned"
    shutil.copytree(finished_run, turned)
    for path in (turned / "predictions").iterdir():
        whole = pq.read_table(path)
        names = ["chosen_reward", "rejected_reward"]
        swapped = whole.rename_columns([names[1 - names.index(n)] if n in names else n for n in whole.column_names])
        pq.write_table(swapped, path)
    table = compare_groups({"run": [finished_run], "copy": [finished_run], "turned": [turned]})
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert table.sets == {
        "validation": "validation",
        "topics": "ood_validation",
        "id": "id",
        "hard": "ood",
        "style": "ood",
        "OOD mean": "ood_mean",
    }
    for name in table.sets:
        same = table.result("copy", name).difference
        assert (same.value, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)
        accuracy = table.result("run", name).accuracy
        assert table.result("turned", name).accuracy.value == pytest.approx(1 - accuracy.value)
    assert table.result("run", "id").accuracy.value == metrics["id"]["accuracy"]
    assert table.values("run", "topics", "ece") == {3: metrics["ood_validation"]["topics"]["ece"]}
    events = EventAccumulator(str(finished_run), size_guidance={"scalars": 0}).Reload()
    curve = [(point.step + 1, point.value) for point in events.Scalars("validation/accuracy")]
    assert list(zip(*(column.tolist() for column in table.curves["run"][3]), strict=True)) == curve
    bar = 0.5 + 0.95 * (curve[-1][1] - 0.5)
    assert table.convergence["run"][3].steps == next(step for step, value in curve if value >= bar)
    assert table.values("run", "train", "peak_memory_mib")[3] == metrics["train"]["peak_memory_mib"]
