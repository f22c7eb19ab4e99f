from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.report.runs import read_run, run_labels

MakeRun = Callable[..., Path]


def test_a_run_is_read_whole(make_run: MakeRun) -> None:
    run = read_run(make_run())
    assert run.ood_sets == ["new_topics", "reversed_cue", "harder_pairs"]
    assert run.config["model"]["backbone"] == "world-decoder"
    assert run.record["git_commit"] == "0123abc"
    columns = run.predictions("reversed_cue")
    assert columns is not None
    accuracy = np.mean(columns["chosen_reward"] > columns["rejected_reward"])
    assert run.metrics["ood"]["reversed_cue"]["accuracy"] == pytest.approx(accuracy)
    assert columns["id"][0] == "reversed_cue-0"
    assert columns["prompt"].dtype == np.int64
    margins = run.margins()
    assert margins is not None
    assert len(margins["step"]) == 960
    assert [row["id"] for row in run.errors()] == [f"pair-{place}" for place in range(25)]


def test_what_a_run_without_evaluation_lacks_is_none(make_run: MakeRun) -> None:
    run = read_run(make_run(bare=True))
    assert run.predictions("id") is None
    assert run.margins() is None
    assert run.errors() == []
    assert run.scalars(["train/loss"]) == {}


def test_scalars_come_back_from_event_files(make_run: MakeRun) -> None:
    curves = read_run(make_run()).scalars(["train/loss", "id/accuracy", "no/such"])
    assert list(curves) == ["train/loss", "id/accuracy"]
    steps, losses = curves["train/loss"]
    assert steps.tolist() == list(range(1, 301))  # every point, no sample of them
    assert losses[-1] == pytest.approx(0.69 * np.exp(-2), abs=0.06)
    assert curves["id/accuracy"][0].tolist() == [50, 100, 150, 200, 250, 300]


def test_of_a_step_logged_twice_the_later_value_counts(make_run: MakeRun) -> None:
    run = make_run(bare=True)
    for suffix, wall_time, value in ((".z", 1000.0, 1.0), (".a", 2000.0, 2.0)):  # file names in the other order
        with SummaryWriter(str(run), filename_suffix=suffix) as writer:
            writer.add_scalar("train/loss", value, 7, walltime=wall_time)
            writer.add_scalar("train/loss", value, 7 + int(value), walltime=wall_time)
    steps, values = read_run(run).scalars(["train/loss"])["train/loss"]
    assert dict(zip(steps.tolist(), values.tolist(), strict=True)) == {7: 2.0, 8: 1.0, 9: 2.0}


def test_events_in_a_folder_of_the_run_are_found(make_run: MakeRun) -> None:
    run = make_run(bare=True)
    with SummaryWriter(str(run / "version_0")) as writer:
        writer.add_scalar("train/loss", 0.5, 3)
    assert read_run(run).scalars(["train/loss"])["train/loss"][0].tolist() == [3]


def one_line(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_what_is_no_run_is_refused(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(UserError) as error:
        read_run(tmp_path / "nowhere")
    one_line(error, str(tmp_path / "nowhere"), "not there", "--run_dir")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as error:
        read_run(tmp_path / "file")
    one_line(error, "is a file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        read_run(tmp_path / "empty")
    one_line(error, "no metrics.json, config.yaml, run.json")
    run = make_run(bare=True)
    (run / "metrics.json").unlink()
    with pytest.raises(UserError) as error:
        read_run(run)
    one_line(error, "no metrics.json;", "--ckpt_path last")


@pytest.mark.parametrize(
    ("file", "content"), [("metrics.json", '{"id": \n'), ("config.yaml", "a: [1\nb: 2"), ("run.json", "[1]")]
)
def test_broken_files_are_named(make_run: MakeRun, file: str, content: str) -> None:
    run = make_run(bare=True)
    (run / file).write_text(content)
    with pytest.raises(UserError) as error:
        read_run(run)
    one_line(error, str(run / file), "write it again")


def test_missing_and_broken_predictions_are_named(make_run: MakeRun) -> None:
    run = read_run(make_run())
    path = run.path / "predictions" / "new_topics.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(UserError) as error:
        run.predictions("new_topics")
    one_line(error, str(path), "not a Parquet file")
    path.unlink()
    with pytest.raises(UserError) as error:
        run.predictions("new_topics")
    one_line(error, str(path), "missing")
    (run.path / "errors.jsonl").write_text('{"a": 1}\n{"b"\n')
    with pytest.raises(UserError) as error:
        run.errors()
    one_line(error, "errors.jsonl")


def test_errors_may_hold_any_text(make_run: MakeRun) -> None:
    run = read_run(make_run(bare=True))
    row = {"chosen": "a\u2028b\x85c\n", "rejected": ""}
    (run.path / "errors.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert run.errors() == [row]


def test_labels_are_as_short_as_they_can_be(make_run: MakeRun) -> None:
    runs = [read_run(make_run(name, bare=True)) for name in ("a/bt", "a/aplot", "b/aplot")]
    assert run_labels(runs[:2]) == ["bt", "aplot"]
    assert run_labels(runs) == ["a/bt", "a/aplot", "b/aplot"]
    assert run_labels([runs[0], runs[0]]) == ["bt", "bt"]
    assert run_labels([]) == []
