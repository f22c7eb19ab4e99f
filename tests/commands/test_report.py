from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonargparse import ArgumentParser

from aplot_lightning.commands.report import main
from aplot_lightning.errors import UserError


def make_run(path: Path, accuracy: float) -> str:
    """The smallest finished run: one ID set."""
    (path / "predictions").mkdir(parents=True)
    gap = np.where(np.arange(100) < 100 * accuracy, 1.0, -1.0)
    columns = {
        "id": [str(place) for place in range(100)],
        "prompt": np.arange(100) // 2,
        "chosen_reward": gap,
        "rejected_reward": np.zeros(100),
        "target": np.ones(100),
    }
    pq.write_table(pa.table(columns), path / "predictions" / "id.parquet")
    metrics = {"id": {"accuracy": accuracy, "ci95": [0.0, 1.0], "pairs": 100}, "ood": {}, "train": {}}
    (path / "metrics.json").write_text(json.dumps(metrics))
    (path / "config.yaml").write_text("model:\n  backbone: tiny\n")
    (path / "run.json").write_text("{}")
    return str(path)


def test_one_run_is_shown_and_its_report_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "bt", 0.75)
    main([run])
    out = capsys.readouterr().out
    assert "id     100  0.750 [" in out
    assert out.endswith(f"report: {tmp_path / 'bt' / 'report.md'}\n")
    assert "| backbone | tiny |" in (tmp_path / "bt" / "report.md").read_text()


def test_several_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / "bt", 0.75), make_run(tmp_path / "aplot", 0.85)]
    main(runs)
    out = capsys.readouterr().out
    assert out.split("\n")[0].split() == ["set", "pairs", "bt", "aplot", "aplot", "-", "bt"]
    assert "0.750 [" in out
    assert "+0.100 [+0.0" in out
    assert not (tmp_path / "bt" / "report.md").exists()


def test_a_comparison_is_written_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / "bt", 0.75), make_run(tmp_path / "aplot", 0.85)]
    main(runs, output=str(tmp_path / "new" / "folder"))
    folder = tmp_path / "new" / "folder"
    assert str(folder / "comparison.md") in capsys.readouterr().out
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "| id | 100 | 0.750 [" in text
    assert "(comparison.png)" in text
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bt", 0.75)
    (tmp_path / "file").write_text("")
    cases = {
        "--output needs two or more runs": ([run], str(tmp_path / "out")),
        "cannot be written": ([run, run], str(tmp_path / "file")),
        "name one or more run directories": ([], None),
        "nowhere is not there": ([run, str(tmp_path / "nowhere")], str(tmp_path / "out")),
    }
    for message, (runs, output) in cases.items():
        with pytest.raises(UserError, match=message) as error:
            main(runs, output=output)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_help_comes_from_the_docstring() -> None:
    parser = ArgumentParser()
    parser.add_function_arguments(main)
    text = " ".join(parser.format_help().split())
    assert "the first is what the others are compared with" in text
    assert "a folder for comparison.md and comparison.png" in text


def test_the_command_is_light_to_import() -> None:
    code = (
        "import sys, aplot_lightning.commands.report\n"
        "heavy = {'torch', 'matplotlib', 'numpy', 'pyarrow', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    subprocess.run(
        [sys.executable, "-c", "import sys, aplot_lightning.evaluation.report; assert 'torch' not in sys.modules"],
        check=True,
        timeout=60,
    )
