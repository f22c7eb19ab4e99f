"""The files of a run as a user reads them: docs/interface.md's run directory, metrics.json and TensorBoard tags."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from aplot_lightning import RewardModel

STEPS = 18
SET_KEYS = {
    "accuracy",
    "ci95",
    "pairs",
    "log_loss",
    "ece",
    "hard_accuracy",
    "longer_chosen_accuracy",
    "shorter_chosen_accuracy",
    "length_correlation",
    "mean_gap",
    "auroc",
}
STEMS = ["validation", "id", "ood/hard", "ood/style", "ood_validation/topics", "ood_mean"]


@pytest.fixture(scope="module")
def metrics(finished_run: Path) -> dict:
    return json.loads((finished_run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def events(finished_run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(finished_run), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


def test_the_run_directory_holds_every_file(finished_run: Path) -> None:
    files = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    expected = {
        "config.yaml",
        "run.json",
        "data_report.json",
        "data_report.md",
        "metrics.json",
        "report.md",
        "errors.jsonl",
    }
    expected |= {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "diagnostics/margins.parquet"}
    expected |= {f"predictions/{name}.parquet" for name in ("validation", "id", "hard", "style", "topics")}
    assert expected <= files
    assert {path for path in files if path.startswith("plots/")} >= {"plots/learning_curve.png", "plots/accuracy.png"}
    assert not [path for path in files if path.startswith(("lightning_logs", "version_"))]


def test_metrics_have_the_promised_keys(metrics: dict) -> None:
    assert set(metrics) == {"id", "validation", "ood", "ood_validation", "ood_mean", "train"}
    assert set(metrics["id"]) == set(metrics["validation"]) == SET_KEYS
    assert set(metrics["ood"]) == {"hard", "style"}
    assert all(set(entry) == {*SET_KEYS, "subsets"} for entry in metrics["ood"].values())
    rates = {"pairs_per_second", "tokens_per_second"}
    assert set(metrics["train"]) == {"steps", "pairs", "seconds", "peak_memory_mib", *rates}
    assert metrics["ood"]["hard"]["pairs"] == 41
    assert metrics["ood"]["style"]["pairs"] == 33
    mean = (metrics["ood"]["hard"]["accuracy"] + metrics["ood"]["style"]["accuracy"]) / 2
    assert metrics["ood_mean"] == {"accuracy": pytest.approx(mean)}
    low, high = metrics["id"]["ci95"]
    assert low <= metrics["id"]["accuracy"] <= high


@pytest.mark.parametrize("name", ["validation", "id", "hard", "style", "topics"])
def test_accuracy_follows_from_the_predictions(finished_run: Path, metrics: dict, name: str) -> None:
    table = pq.read_table(finished_run / "predictions" / f"{name}.parquet").to_pydict()
    places = {"hard": metrics["ood"], "style": metrics["ood"], "topics": metrics["ood_validation"]}
    entry = places.get(name, metrics)[name]
    gaps = np.asarray(table["chosen_reward"]) - np.asarray(table["rejected_reward"])
    assert entry["accuracy"] == pytest.approx(float((gaps > 0).mean()), abs=1e-12)
    assert entry["mean_gap"] == pytest.approx(float(gaps.mean()), abs=1e-6)
    assert entry["pairs"] == len(gaps) == len(set(table["id"]))
    for subset, its in entry.get("subsets", {}).items():
        members = np.asarray(table["subset"]) == subset
        assert its["accuracy"] == pytest.approx(float((gaps > 0)[members].mean()))
        assert its["pairs"] == members.sum()


def test_predictions_are_what_the_best_checkpoint_scores(finished_run: Path, laboratory) -> None:
    rows = [json.loads(line) for line in (laboratory.folder / "hard.jsonl").read_text().splitlines()]
    table = pq.read_table(finished_run / "predictions" / "hard.parquet").to_pydict()
    assert table["id"] == [row["id"] for row in rows]
    for side in ("chosen", "rejected"):
        items = [{"prompt": row["prompt"], "response": row[side]} for row in rows]
        scores = RewardModel.from_pretrained(str(finished_run)).score(items)
        assert scores == pytest.approx(table[f"{side}_reward"], abs=1e-5)
        assert table[f"{side}_characters"] == [len(row[side]) for row in rows]
    best = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    named = RewardModel.from_pretrained(str(finished_run / "checkpoints" / "best.ckpt")).state_dict()
    stored = {key.removeprefix("reward_model."): value for key, value in best["state_dict"].items()}
    torch.testing.assert_close(dict(named), stored, rtol=0, atol=0)


def test_best_is_the_validation_with_the_highest_accuracy(finished_run: Path, events: EventAccumulator) -> None:
    curve = events.Scalars("validation/accuracy")
    best = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] in {point.step + 1 for point in curve if point.value == max(p.value for p in curve)}
    last = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == STEPS


def test_every_promised_tag_is_in_tensorboard(events: EventAccumulator, metrics: dict) -> None:
    tags = set(events.Tags()["scalars"])
    expected = {"train/loss", "train/accuracy", "train/gap"}
    expected |= {f"margin/{name}" for name in ("mean", "p10", "p90", "hardness_correlation")}
    expected |= {"transport/plan_entropy", "transport/marginal_error"}
    expected |= {"throughput/pairs_per_second", "throughput/padding_fraction"}
    expected |= {f"{stem}/accuracy" for stem in STEMS}
    expected |= {f"{stem}/{key}" for stem in STEMS[:-1] for key in SET_KEYS - {"ci95", "pairs", "accuracy"}}
    expected |= {f"ood_mean/{key}" for key in ("log_loss", "ece", "mean_gap", "auroc", "length_correlation")}
    assert expected - tags == set()
    assert [point.step for point in events.Scalars("train/loss")] == list(range(STEPS))
    # an interval of 4 in epochs of 9 steps, and the end of the run
    assert [point.step + 1 for point in events.Scalars("id/accuracy")] == [4, 8, 13, 17, STEPS]
    assert all(math.isfinite(point.value) for tag in tags for point in events.Scalars(tag))
    assert 0 < events.Scalars("margin/p10")[-1].value <= events.Scalars("margin/p90")[-1].value
    assert all(0 <= point.value < 1 for point in events.Scalars("throughput/padding_fraction"))


def test_tensorboard_lays_id_beside_ood_in_one_chart(events: EventAccumulator) -> None:
    content = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    charts = [chart for page in layout_pb2.Layout.FromString(content).category for chart in page.chart]
    accuracy = next(chart for chart in charts if chart.title == "accuracy")
    assert {"id/accuracy", "ood/hard/accuracy", "ood/style/accuracy"} <= set(accuracy.multiline.tag)
    known = set(events.Tags()["scalars"])
    assert all(tag in known for chart in charts for tag in chart.multiline.tag)


def test_tensorboard_has_pictures_and_hyperparameters(events: EventAccumulator, metrics: dict) -> None:
    assert {"transport/plan", "margin/margins"} <= set(events.Tags()["images"])
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hyperparameters = dict(plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info.hparams)
    assert hyperparameters["model.learning_rate"].number_value == 3e-3
    assert hyperparameters["data.batch_size"].number_value == 32
    assert events.Scalars("final/id_accuracy")[-1].value == pytest.approx(metrics["id"]["accuracy"])
    assert events.Scalars("final/ood_mean_accuracy")[-1].value == pytest.approx(metrics["ood_mean"]["accuracy"])


def test_the_reports_say_what_was_read_and_where_it_ran(finished_run: Path, metrics: dict) -> None:
    report = json.loads((finished_run / "data_report.json").read_text())
    assert report["train"]["total"]["read"] == 331
    assert set(report["ood"]) == {"hard", "style"}
    assert report["ood"]["hard"]["pairs"] == 41
    held_out = report["id"]["pairs"] + report["validation"]["pairs"]
    assert metrics["train"]["pairs"] == 2 * (331 - held_out)
    assert metrics["train"]["steps"] == STEPS
    run = json.loads((finished_run / "run.json").read_text())
    assert {"command", "started", "git_commit", "versions", "hardware", "data"} <= set(run)
    assert run["hardware"]["ranks"] == 1
    assert "transport" in run["objective"]
    report_page = (finished_run / "report.md").read_text()
    assert f"{metrics['id']['accuracy']:.3f}" in report_page
    for picture in (finished_run / "plots").iterdir():
        assert picture.name in report_page


def test_the_data_report_is_a_page_and_a_text_in_tensorboard(finished_run: Path, events: EventAccumulator) -> None:
    page = (finished_run / "data_report.md").read_text(encoding="utf-8")
    for line in ("| train | train.jsonl | 331 | 331 | 331 |", "| ood/hard | hard.jsonl | 41 |", "No row was refused."):
        assert line in page
    assert page.count("⟦<|end|>⟧") == 6  # three pairs, scored at the template's end
    (event,) = events.Tensors("data/report/text_summary")
    assert event.tensor_proto.string_val[0].decode() == page


@pytest.mark.parametrize("terminal", [True, False])
def test_on_a_terminal_a_run_says_a_line_of_each_set(
    laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: terminal  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", screen)
        options = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "trainer.enable_progress_bar": False}
        assert laboratory("fit", tmp_path / "run", options) == 0
    lines = [line for line in screen.getvalue().splitlines() if line.startswith("data ")]
    expected = ["data train: 331 rows of train.jsonl, 331 used", "data ood/style: 33 rows of style.jsonl, 33 used"]
    assert lines[::4] == (expected if terminal else [])


def test_the_worst_errors_are_errors_worst_first(finished_run: Path) -> None:
    errors = [json.loads(line) for line in (finished_run / "errors.jsonl").read_text().splitlines()]
    gaps = [error["chosen_reward"] - error["rejected_reward"] for error in errors]
    assert 0 < len(errors) <= 20
    assert gaps == sorted(gaps)
    assert max(gaps) <= 0
    assert {error["set"] for error in errors} <= set(STEMS)


def test_checkpoints_load_without_pickles_and_the_config_can_be_used_again(finished_run: Path, laboratory) -> None:
    for name in ("best", "last"):
        checkpoint = torch.load(finished_run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    again = finished_run.parent / "again"
    options = {"config": str(finished_run / "config.yaml"), "trainer.max_steps": 1, "trainer.limit_val_batches": 0}
    assert laboratory("fit", again, options) == 0
    assert torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
