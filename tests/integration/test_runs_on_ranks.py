"""The same run in one process, under DDP and under FSDP2, and resumed under another of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from aplot_lightning import RewardModel
from aplot_lightning.cli import main
from aplot_lightning.data.world import PreferenceWorld
from tests.runs import checkpoint, curve, probe

FSDP = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
RANKS: dict[str, dict[str, Any]] = {
    "one": {},
    "ddp": {"trainer.strategy": "ddp"},
    "fsdp": {"trainer.strategy": FSDP},
}
# 31 pairs in micro-batches of 8: uneven over two ranks; a plan over the whole batch; sets of odd size
WHOLE = {
    "objective": "aplot",
    "data.batch_size": 31,
    "data.micro_batch_size": 8,
    "model.gradient_checkpointing": True,
    "trainer.gradient_clip_val": 0.5,
    "trainer.max_steps": 6,
    "checkpoint_every_n_steps": 3,
    "checkpoint_keep": 3,
}


def fit(laboratory: Any, run_dir: Path, name: str, options: dict[str, Any] | None = None) -> None:
    options = {**WHOLE, **RANKS[name], **(options or {})}
    if name == "one":
        assert laboratory("fit", run_dir, options) == 0
    else:
        assert "Warning" not in laboratory.on_two_ranks(run_dir, options)


@pytest.fixture(scope="module")
def runs(laboratory: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six steps each, with a checkpoint of step 3: in one process, and in two under either strategy."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in RANKS:
        fit(laboratory, folder / name, name)
    return {name: folder / name for name in RANKS}


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_are_the_same_run_as_one_process(name: str, runs: dict[str, Path]) -> None:
    expected, found = curve(runs["one"], "train/loss"), curve(runs[name], "train/loss")
    assert len(expected) == 6
    assert found == pytest.approx(expected, abs=1e-5)
    for file in ("last", "best"):
        one, two = checkpoint(runs["one"], file), checkpoint(runs[name], file)
        assert one["global_step"] == two["global_step"]
        torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=0, atol=1e-5)
    assert checkpoint(runs[name])["optimizer_states"][0]["state"].keys() == set(range(len(one["state_dict"])))


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_uneven_sets_are_evaluated_exactly(name: str, runs: dict[str, Path]) -> None:
    known, found = (json.loads((runs[run] / "metrics.json").read_text()) for run in ("one", name))
    for its, expected in (
        (found["id"], known["id"]),
        *((found["ood"][key], known["ood"][key]) for key in known["ood"]),
    ):
        assert (its["pairs"], its["accuracy"]) == (expected["pairs"], expected["accuracy"])
        assert its["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-5)
    assert known["ood"]["hard"]["pairs"] % 2 == 1
    for file in ("validation", "id", "hard", "style"):
        one, two = (pq.read_table(runs[run] / "predictions" / f"{file}.parquet").to_pydict() for run in ("one", name))
        assert one["id"] == two["id"]  # each pair once, in the set's order
        assert two["chosen_reward"] == pytest.approx(one["chosen_reward"], abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("one", "fsdp"),
        ("ddp", "one"),
        pytest.param("one", "ddp", marks=pytest.mark.stress),
        pytest.param("fsdp", "one", marks=pytest.mark.stress),
    ],
)
def test_a_run_resumes_on_another_number_of_ranks(
    laboratory: Any, runs: dict[str, Path], tmp_path: Path, first: str, second: str
) -> None:
    """From step 3 of one to step 6 under the other: the weights are those of the undisturbed run."""
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    shutil.copyfile(runs[first] / "checkpoints" / "step-00000003.ckpt", run_dir / "checkpoints" / "last.ckpt")
    fit(laboratory, run_dir, second, {"ckpt_path": "last"})
    found = curve(run_dir, "train/loss")
    assert sorted(found) == [3, 4, 5]  # it really starts after the checkpoint's step
    expected = curve(runs["one"], "train/loss")
    assert found == pytest.approx({step: expected[step] for step in found}, abs=1e-5)
    resumed, undisturbed = checkpoint(run_dir), checkpoint(runs["one"])
    assert resumed["global_step"] == 6
    torch.testing.assert_close(resumed["state_dict"], undisturbed["state_dict"], rtol=0, atol=1e-5)


def test_a_sharded_run_is_a_model_like_any_other(runs: dict[str, Path]) -> None:
    items = [{"prompt": "How many in all?", "response": str(number)} for number in range(4)]
    one, sharded = (RewardModel.from_pretrained(str(runs[name])).score(items) for name in ("one", "fsdp"))
    assert sharded == pytest.approx(one, abs=1e-4)


def test_transformers_scores_an_exported_sharded_run_alike(runs: dict[str, Path], tmp_path: Path) -> None:
    assert main(["export", "--model", str(runs["fsdp"]), "--output", str(tmp_path / "model")]) == 0
    rows = [row for _, row in PreferenceWorld(pairs=16, seed=8).rows()]
    items = [{"prompt": row["prompt"], "response": row[side]} for row in rows for side in ("chosen", "rejected")]
    expected = RewardModel.from_pretrained(str(runs["fsdp"])).score(items)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    found: list[float] = []
    for start in range(0, len(items), 16):
        chats = [
            [{"role": "user", "content": item["prompt"]}, {"role": "assistant", "content": item["response"]}]
            for item in items[start : start + 16]
        ]
        inputs = tokenizer.apply_chat_template(chats, padding=True, return_dict=True, return_tensors="pt")
        assert (inputs["attention_mask"] == 0).any()
        with torch.no_grad():
            found += model(**inputs).logits[:, 0].tolist()
    assert len(found) == 32
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(found) - min(found) > 0.01


def test_both_ranks_stop_together_on_sigterm(laboratory: Any, tmp_path: Path) -> None:
    """Each rank gets it in the step after 3, as SLURM sends it."""
    options = {**WHOLE, **RANKS["ddp"], **probe("Interrupt", step=3, how="SIGTERM")}
    laboratory.on_two_ranks(tmp_path / "run", options, codes=(143, 143))
    assert checkpoint(tmp_path / "run")["global_step"] == 4


@pytest.mark.stress
@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_ranks_of_lightnings_launcher_stop_together_on_a_signal(
    laboratory: Any, tmp_path: Path, how: str, code: int
) -> None:
    options = {**WHOLE, **RANKS["ddp"], "trainer.devices": 2, **probe("Interrupt", step=3, how=how)}
    process = laboratory.start("fit", tmp_path / "run", options)
    _, output = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert output.count("ctrl-C again stops at once") == (how == "SIGINT")
    assert checkpoint(tmp_path / "run")["global_step"] == 4


@pytest.mark.stress
def test_torchrun_starts_a_sharded_run(laboratory: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    laboratory.launch(tmp_path / "run", {**WHOLE, **RANKS["fsdp"], "trainer.devices": 2})
    found, expected = checkpoint(tmp_path / "run"), checkpoint(runs["fsdp"])
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=1e-6)


@pytest.mark.stress
def test_a_sharded_run_in_half_precision_skips_a_step_on_all_ranks(laboratory: Any, tmp_path: Path) -> None:
    """One NaN gradient, under bf16-mixed with clipping; the head stays float32."""
    options = {
        "data.ood": {},
        "trainer.precision": "bf16-mixed",
        "trainer.max_steps": 4,
        "model.on_not_finite": "skip",
        "checkpoint_every_n_steps": 1,
        "checkpoint_keep": 9,
        **probe("BadSteps", steps=[1], where="gradient"),
    }
    fit(laboratory, tmp_path / "run", "fsdp", options)
    before, skipped, taken = (checkpoint(tmp_path / "run", f"step-{step:08}") for step in (1, 2, 3))
    torch.testing.assert_close(skipped["state_dict"], before["state_dict"], rtol=0, atol=0)
    assert taken["not_finite"] == {"skipped": 1, "in_a_row": 0}
    assert {tensor.dtype for tensor in taken["state_dict"].values()} == {torch.float32}
    difference = taken["state_dict"]["reward_model.head.weight"] - skipped["state_dict"]["reward_model.head.weight"]
    assert difference.abs().max() > 0
