"""report.md of a study whose trials are known: what was chosen, how trials ended, and where to look further."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest

from aplot_lightning.evaluation.report.rendering import markdown_table
from aplot_lightning.evaluation.report.tables import Table
from aplot_lightning.tuning.study_report import (
    best_trials,
    dashboard_storage,
    ranked,
    trial_counts,
    write_study_report,
)
from tests.tuning.hand import complete, failed, hand_study, many, pruned, study_config

NAN = "some\naplot: step 3: the loss is nan | inf\n(exit code 1, runs/hand/trials/0003/log.txt)"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("study")
    config = study_config(folder, pruner="hyperband", seeds=2)
    trials = [*many(12), pruned(0.4, 0.45), failed(NAN), failed(None), *[failed("aplot: data.train: gone")] * 11]
    path = write_study_report(config, hand_study(config, trials), folder / "best.yaml", ["What it is worth."])
    assert path == folder / "report.md"
    return path.read_text(encoding="utf-8")


def test_it_says_what_was_chosen_and_by_what(report: str) -> None:
    assert report.startswith("# Study hand\n")
    assert "| chosen by | validation/accuracy, mean of 2 seeds (higher is better) |" in report
    assert re.search(r"\| chosen \| trial 11, validation/accuracy 0\.6100; as a config: \S+/best\.yaml \|", report)
    assert "| sampler, pruner | tpe (seed 0), hyperband |" in report
    assert f"optuna {optuna.__version__}" in report
    assert "\n\nWhat it is worth.\n\n" in report


def test_it_counts_trials_and_gives_the_reason_of_those_that_failed(report: str) -> None:
    assert "12 complete, 1 pruned, 12 failed, 1 cut off and tried again." in report
    assert r"| 13 | step 3: the loss is nan \| inf |" in report
    assert report.count("| data.train: gone |") == 9
    assert "2 more failed; their logs are in " in report


def test_the_best_five_come_first_with_their_parameters(report: str) -> None:
    rows = [
        [
            str(place),
            f"{0.5 + place / 100:.4f}",
            f"{place / 12:.4g}",
            f"{(0.5, 1.0)[place % 2]}",
            f"{1e-3 + place / 1e4:.4g}",
        ]
        for place in (11, 10, 9, 8, 7)
    ]
    for row in rows:
        row[3] = f"{float(row[3]):.4g}"
    table = markdown_table(Table(["trial", "validation/accuracy", "share", "factor", "learning_rate"], rows))
    assert table in report


def test_every_plot_is_there(report: str) -> None:
    for name in ("history", "importance", "slice", "contour"):
        assert f"![{name}](plots/{name}.png)" in report


def test_the_dashboard_gets_the_storage_that_the_study_is_in(tmp_path: Path) -> None:
    config = study_config(tmp_path)
    hand_study(config, [complete(0.5)])
    location = dashboard_storage(config.location)
    assert [trial.value for trial in optuna.load_study(study_name="hand", storage=location).trials] == [0.5]


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("journal:/somewhere/study.log", "/somewhere/study.log"),
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
    ],
)
def test_the_dashboard_takes_a_journal_by_its_path_and_no_password_is_written_down(location: str, shown: str) -> None:
    assert dashboard_storage(location) == shown


def test_the_best_is_optunas_own_best_also_of_equals_and_where_lower_is_better(tmp_path: Path) -> None:
    for monitor in ("validation/accuracy", "validation/log_loss"):
        config = study_config(tmp_path / monitor.replace("/", "_"), monitor=monitor)
        study = hand_study(config, [complete(value) for value in (0.5, 0.7, 0.4, 0.7, 0.4)])
        assert ranked(config, study)[0].number == study.best_trial.number
        assert [trial.value for trial in ranked(config, study)] == sorted(
            [0.5, 0.7, 0.4, 0.7, 0.4], reverse=monitor.endswith("accuracy")
        )


def test_a_parameter_that_a_trial_did_not_have_is_a_dash(tmp_path: Path) -> None:
    config = study_config(tmp_path)
    without = optuna.trial.create_trial(value=0.4, params={}, distributions={})
    table = best_trials(config, hand_study(config, [complete(0.5), without]))
    assert table.rows[-1] == ["1", "0.4000", "-", "-", "-"]


def test_running_and_waiting_trials_are_counted_too(tmp_path: Path) -> None:
    study = hand_study(study_config(tmp_path), [complete(0.5)])
    study.enqueue_trial({"share": 0.5})
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING))
    assert trial_counts(study) == "1 complete, 0 pruned, 0 failed, 1 waiting, 1 running"
