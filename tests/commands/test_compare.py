"""The command on real runs: what is missing is run, tables and plots are written, and mistakes are one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from aplot_lightning.cli import main
from aplot_lightning.tuning.comparison import lock_directory
from aplot_lightning.tuning.comparison_report import title
from aplot_lightning.tuning.grid import Setting, read_grid

ROOT = Path(__file__).parents[2]
OBJECTIVES = {name: str(ROOT / f"conf/objective/{name}.yaml") for name in ("bt", "aplot")}


@pytest.fixture(scope="module")
def study(laboratory: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with label noise, in which one objective needs what the data do not have."""
    folder = tmp_path_factory.mktemp("study")
    content = {
        "configs": [laboratory.config],
        "overrides": {"trainer.max_steps": 6, "trainer.val_check_interval": 3, "trainer.log_every_n_steps": 3},
        "objectives": OBJECTIVES,
        "seeds": [1],
        "label_noise": [0.0, 0.5],
        "directory": str(folder / "runs"),
        "workers": 2,
    }
    (folder / "noise.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "noise.yaml"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("APLOT_RUN_DIR", raising=False)


@pytest.fixture(scope="module")
def compared(study: Path) -> Path:
    """The directory of the finished comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("APLOT_RUN_DIR", raising=False)
        assert main(["compare", "--config", str(study)]) == 0
    return study.parent / "runs"


def test_the_axis_reaches_the_data_and_the_seed_is_the_cells(compared: Path) -> None:
    clean, noisy = (compared / name for name in ("aplot/seed1", "noise0.5/aplot/seed1"))
    account = json.loads((noisy / "data_report.json").read_text())["robustness"]
    assert (account["label_noise"], account["seed"]) == (0.5, 1)
    assert 0.35 < account["pairs"]["swapped"] / account["pairs"]["trained_on"] < 0.65
    assert "robustness" not in json.loads((clean / "data_report.json").read_text())
    figures = [json.loads((run / "metrics.json").read_text()) for run in (clean, noisy)]
    assert figures[0]["id"] != figures[1]["id"]
    assert [each["train"]["steps"] for each in figures] == [6, 6]


def test_the_report_has_a_table_for_each_setting_and_one_over_the_axis(compared: Path) -> None:
    report = (compared / "report.md").read_text()
    assert "4 of 4 runs are done: 2 objectives x 1 seed x 2 levels of label noise." in report
    assert "## Label noise: all labels, all data" in report
    assert "| id, label noise | 0.0 | 0.5 |" in report
    for name in ("plain", "noise0.5"):
        assert f"(tables/{name}/report.md)" in report
        page = compared / "tables" / name / "report.md"
        for line in page.read_text().split("\n"):
            if line.startswith("!["):
                assert (page.parent / line.rpartition("(")[2].rstrip(")")).is_file()
        assert "differences.png" in page.read_text()
    assert f"tensorboard --logdir {compared}" in report


def test_the_tables_say_what_the_runs_have(compared: Path) -> None:
    with (compared / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["metric"] == "accuracy" and row["set"] == "hard":
            folder = compared / ("noise0.5" if float(row["label_noise"]) else "")
            run = folder / row["group"] / f"seed{row['seed']}" / "metrics.json"
            assert float(row["value"]) == json.loads(run.read_text())["ood"]["hard"]["accuracy"]
    assert sum(row["metric"] == "accuracy" and row["set"] == "hard" for row in rows) == 4
    with (compared / "table_estimates.csv").open() as file:
        assert {row["label_noise"] for row in csv.DictReader(file)} == {"0.0", "0.5"}


def test_what_is_done_is_left_alone_and_one_seed_more_is_one_run_more(
    compared: Path, study: Path, capfd: pytest.CaptureFixture
) -> None:
    def changed() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in compared.rglob("cell.json")}

    before = changed()
    assert main(["compare", "--config", str(study)]) == 0
    out = capfd.readouterr().out
    assert out.startswith(f"noise: 4 cells in {compared}: 4 done\n")
    assert "all labels, all data\n" in out
    assert changed() == before
    options = ["--seeds", "[1, 4]", "--label_noise", "0.0", "--objectives", f"[{OBJECTIVES['bt']}]"]
    assert main(["compare", "--config", str(study), *options]) == 0
    out = capfd.readouterr().out
    assert f"noise: 2 cells in {compared}: 1 done, 1 to run" in out
    assert "[2/2] bt seed 4: done in " in out
    assert set(changed()) - set(before) == {compared / "bt/seed4/cell.json"}
    # one setting: its table is the report itself
    assert "## Accuracy" in (compared / "report.md").read_text()


def test_a_run_that_fails_is_named_and_the_others_are_compared(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Its data do not fit into so few tokens, which fit finds out itself."""
    (tmp_path / "short.yaml").write_text("data: {max_length: 2, truncation: drop}\n")
    content = yaml.safe_load(study.read_text()) | {"seeds": [0], "label_noise": [0.0]}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content | {"directory": str(tmp_path / "runs")}, sort_keys=False))
    options = ["--objectives", f"[{OBJECTIVES['bt']}, {tmp_path / 'short.yaml'}]", "--workers", "1"]
    assert main(["compare", "--config", str(tmp_path / "x.yaml"), *options]) == 1
    said = capfd.readouterr()
    assert said.err.strip().startswith("aplot: 1 of 2 cells failed (short seed 0)")
    assert said.err.count("\n") == 1
    report = (tmp_path / "runs/report.md").read_text()
    assert "## Failed" in report
    assert "| short seed 0 | data.train: " in report
    assert "- short: seed 0 failed: data.train: " in report
    assert "short: seed 0 failed" in said.out


def test_a_second_comparison_in_one_directory_is_refused(study: Path, capfd: pytest.CaptureFixture) -> None:
    lock = lock_directory(read_grid([study], {}))
    try:
        assert main(["compare", "--config", str(study)]) == 2
    finally:
        lock.release()
    error = capfd.readouterr().err
    assert error.startswith(f"aplot: directory: {study.parent / 'runs'} is in use by another compare")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "2"], "the following arguments are required: config"),
        (["--config"], "expected one argument"),
        (["--config", "no.yaml"], "--config: no.yaml cannot be read"),
        (["--config", "STUDY", "stray"], "unrecognized arguments: stray"),
        (["--config", "STUDY", "--wokers", "2"], "unrecognized arguments: --wokers 2"),
        (["--config", "STUDY", "--workers", "many"], "workers: Expected int. Got value: many"),
        (["--config", "STUDY", "--workers", "0"], "workers: 0 is of no use"),
        (["--config", "STUDY", "--overrides.data.train=no.jsonl"], "data.train: no such file: 'no.jsonl'"),
    ],
)
def test_a_mistake_is_one_line_and_answers_at_once(
    study: Path, words: list[str], said: str, capfd: pytest.CaptureFixture
) -> None:
    assert main(["compare", *(str(study) if word == "STUDY" else word for word in words)]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_help_names_every_key(capfd: pytest.CaptureFixture) -> None:
    from aplot_lightning.tuning.grid import KEYS

    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    out = capfd.readouterr().out
    assert all(f"--{key}" in out for key in KEYS)


def test_titles(study: Path) -> None:
    assert title(Setting()) == "all labels, all data"
    assert title(Setting("minilm", 0.25, 0.5)) == "minilm, label noise 0.25, train fraction 0.5"
    assert read_grid([study], {}).settings() == [Setting(None, 0.0, 1.0), Setting(None, 0.5, 1.0)]
