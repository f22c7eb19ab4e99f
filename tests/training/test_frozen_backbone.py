"""Frozen backbones: only the head trains, and the run is the same with and without embeddings on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from aplot_lightning import PreferenceDataModule, RewardModel, RewardModelingModule
from aplot_lightning.model.heads import MLP
from aplot_lightning.objectives import Objective, TransportMargin
from tests.runs import PLAIN, checkpoint, plain_trainer, probe
from tests.shipped import CONF, shipped

HEAD = {"class_path": "aplot_lightning.model.heads.MLP", "init_args": {"hidden_size": 24}}

pytestmark = [
    *PLAIN,
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]


def fit(module: RewardModelingModule, data: PreferenceDataModule, folder: Path, steps: int = 4) -> dict[str, Tensor]:
    trainer = plain_trainer(folder, max_steps=steps)
    trainer.fit(module, datamodule=data)
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# In a plain trainer


@pytest.fixture(scope="module")
def data(laboratory) -> PreferenceDataModule:
    options = {"max_length": 64, "micro_batch_size": 8, "sources_in_every_batch": False, "seed": 3}
    return PreferenceDataModule(str(laboratory.folder / "train.jsonl"), **options)


# a plan over the batch, several heads, a bottleneck that samples, a moving average, and a second reward
@pytest.mark.parametrize("name", ["aplot", "ensemble", "inform", "normbt", "odin"])
def test_objectives_train_the_same_head_with_and_without_the_cache(laboratory, data, tmp_path, name) -> None:
    """One batch of embeddings against two passes of four micro-batches through the backbone."""
    states = []
    data.micro_batch_size = 32 if name == "inform" else 8  # its noise differs between ways of cutting a batch
    for cached in (False, True):
        made = shipped("--config", str(CONF / f"{name}.yaml"))
        torch.manual_seed(1)
        module = RewardModelingModule(
            str(laboratory.folder / "backbone"),
            made.objective,
            head=made.head,
            freeze_backbone=True,
            cache_embeddings=cached,
            dropout=0.2,
            learning_rate=3e-3,
        )
        states.append(fit(module, data, tmp_path))
        assert (data.training_pairs.embeddings is not None) == cached
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-5)


def test_only_the_head_trains_and_the_backbone_drops_nothing(laboratory, data, tmp_path) -> None:
    torch.manual_seed(1)
    options = {"head": MLP(hidden_size=24), "dropout": 0.5, "learning_rate": 1e-2}
    module = RewardModelingModule(
        str(laboratory.folder / "backbone"), freeze_backbone=True, cache_embeddings=False, **options
    )
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    after = fit(module, data, tmp_path)
    assert {name for name in start if not torch.equal(start[name], after[name])} == {
        f"reward_model.head.{name}" for name, _ in module.reward_model.head.named_parameters()
    }
    held = [parameter for group in module.optimizers().param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(each) for each in module.reward_model.head.parameters()}
    module.train()
    assert module.reward_model.head.training
    assert not any(part.training for part in module.reward_model.backbone.modules())


def test_float16_stays_close(laboratory, data, tmp_path) -> None:
    heads = []
    for dtype in ("float32", "float16"):
        torch.manual_seed(1)
        module = RewardModelingModule(
            str(laboratory.folder / "backbone"),
            Objective(margin=TransportMargin()),
            freeze_backbone=True,
            cache_dtype=dtype,
            learning_rate=3e-3,
        )
        heads.append(fit(module, data, tmp_path, steps=9)["reward_model.head.weight"])
    assert not torch.equal(*heads)
    torch.testing.assert_close(heads[1], heads[0], rtol=0, atol=3e-4)  # a tenth of a step


def test_data_used_by_another_module_afterwards_are_tokens_again(laboratory, data, tmp_path) -> None:
    backbone = str(laboratory.folder / "backbone")
    fit(RewardModelingModule(backbone, freeze_backbone=True), data, tmp_path, steps=1)
    after = fit(module := RewardModelingModule(backbone, learning_rate=1e-2), data, tmp_path, steps=1)
    assert data.training_pairs.embeddings is None
    assert module.last_step.scores.embeddings.shape[1] == 32
    assert not torch.equal(
        after["reward_model.backbone.model.embed_tokens.weight"],
        RewardModel.from_backbone(backbone).backbone.model.embed_tokens.weight,
    )


# By the command line


def backbone_rows(laboratory, command: str, run_dir: Path, options: dict[str, Any]) -> int:
    """Runs the command and counts the conversations that the backbone ran on."""
    rows: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        forward = RewardModel.forward

        def watched(self: Any, batch: Any) -> Any:
            rows.extend([] if batch.embeddings is not None else [batch.responses])
            return forward(self, batch)

        patch.setattr(RewardModel, "forward", watched)
        assert laboratory(command, run_dir, options) == 0
    return sum(rows)


@pytest.fixture(scope="module")
def runs(laboratory, tmp_path_factory) -> Any:
    """(options, plain run, cached run, conversations that the backbone ran on for the second)."""
    folder = tmp_path_factory.mktemp("frozen")
    options = {
        "objective": "aplot",
        "model.freeze_backbone": True,
        "model.head": HEAD,
        "model.dropout": 0.1,
        "data.ood_validation.topics": str(laboratory.folder / "topics.jsonl"),
        "data.cache_dir": str(folder / "cache"),
        "trainer.val_check_interval": 4,
    }
    assert laboratory("fit", folder / "plain", {**options, "model.cache_embeddings": False}) == 0
    rows = backbone_rows(laboratory, "fit", folder / "cached", options)
    return options, folder / "plain", folder / "cached", rows


def test_a_cached_run_leaves_what_any_run_leaves(runs) -> None:
    _, plain, cached, _ = runs

    def names(run_dir: Path) -> set[str]:
        return {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if "tfevents" not in path.name}

    def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
        return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    assert names(cached) == names(plain)
    assert {"checkpoints/best.ckpt", "predictions/style.parquet", "diagnostics/margins.parquet"} < names(cached)
    assert curves(cached).keys() == curves(plain).keys()
    for tag, points in curves(plain).items():
        if not tag.startswith("throughput/"):
            assert [step for step, _ in curves(cached)[tag]] == [step for step, _ in points]
    torch.testing.assert_close(checkpoint(cached)["state_dict"], checkpoint(plain)["state_dict"], rtol=0, atol=1e-5)
    for path in sorted((plain / "predictions").iterdir()):
        tables = [pq.read_table(run_dir / "predictions" / path.name).sort_by("id") for run_dir in (plain, cached)]
        assert tables[0].schema == tables[1].schema
        for column in tables[0].column_names:
            expected, found = (table[column].to_pylist() for table in tables)
            numbers = isinstance(expected[0], float)
            assert found == (pytest.approx(expected, abs=1e-5) if numbers else expected)
    figures = [json.loads((run_dir / "metrics.json").read_text()) for run_dir in (plain, cached)]
    assert figures[0]["id"]["accuracy"] == figures[1]["id"]["accuracy"]
    assert [each["train"]["pairs"] for each in figures] == [figures[0]["train"]["pairs"]] * 2


def test_each_conversation_goes_through_the_backbone_once_and_then_never(runs, laboratory, tmp_path) -> None:
    options, _, cached, rows = runs
    used = json.loads((cached / "data_report.json").read_text())["train"]["total"]["used"]
    sets = [
        pq.read_metadata(cached / "predictions" / f"{name}.parquet").num_rows for name in ("hard", "style", "topics")
    ]
    assert rows == 2 * (used + sum(sets))
    assert backbone_rows(laboratory, "fit", tmp_path / "again", options) == 0
    same, found = checkpoint(cached)["state_dict"], checkpoint(tmp_path / "again")["state_dict"]
    torch.testing.assert_close(found, same, rtol=0, atol=0)
    other = {**options, "model.learning_rate": 1e-2, "model.head": None, "objective": "bt", "model.dropout": 0.0}
    assert backbone_rows(laboratory, "fit", tmp_path / "other", other) == 0


@pytest.mark.parametrize("command", [pytest.param("validate", marks=pytest.mark.stress), "test"])
def test_evaluating_a_checkpoint_uses_its_own_weights(runs, laboratory, tmp_path, command) -> None:
    """The config names a backbone from scratch, so that only the checkpoint knows the weights that were frozen."""
    options, _, cached, _ = runs
    run_dir = shutil.copytree(cached, tmp_path / "run")
    (run_dir / "predictions" / "id.parquet").unlink()
    assert backbone_rows(laboratory, command, run_dir, {**options, "ckpt_path": "best", "seed_everything": 99}) == 0
    if command == "test":
        tables = [pq.read_table(each / "predictions" / "id.parquet") for each in (cached, run_dir)]
        assert tables[0] == tables[1]


def test_a_stopped_run_goes_on_to_the_bit(runs, laboratory, tmp_path) -> None:
    options, _, cached, _ = runs
    run_dir = tmp_path / "run"
    assert laboratory("fit", run_dir, {**options, **probe("Interrupt", step=7, how="SIGTERM")}) == 143
    assert checkpoint(run_dir)["global_step"] == 8
    assert laboratory("fit", run_dir, {**options, "ckpt_path": "last"}) == 0
    for name in ("last", "best"):
        torch.testing.assert_close(
            checkpoint(run_dir, name)["state_dict"], checkpoint(cached, name)["state_dict"], rtol=0, atol=0
        )


def test_a_checkpoint_holds_the_whole_model(runs, laboratory) -> None:
    _, _, cached, _ = runs
    model = RewardModel.from_pretrained(str(cached))
    assert model.head.kind == "mlp"
    best = {key.removeprefix("reward_model."): value for key, value in checkpoint(cached, "best")["state_dict"].items()}
    torch.testing.assert_close(dict(model.state_dict()), best, rtol=0, atol=0)
    rows = [json.loads(line) for line in (laboratory.folder / "style.jsonl").read_text().splitlines()]
    table = pq.read_table(cached / "predictions" / "style.parquet").to_pydict()
    scored = model.score([{"prompt": row["prompt"], "response": row["chosen"]} for row in rows])
    assert sorted(table["chosen_reward"]) == pytest.approx(sorted(scored), abs=1e-5)


@pytest.mark.parametrize(
    "options", [{"data.layout": "padded"}, pytest.param({"model.pooling": "mean"}, marks=pytest.mark.stress)]
)
def test_layouts_and_poolings_of_the_backbone(runs, laboratory, tmp_path, options) -> None:
    shared = {**runs[0], **options, "data.ood": {}, "trainer.max_steps": 3}
    assert backbone_rows(laboratory, "fit", tmp_path / "cached", shared) == 0 or "model.pooling" in options
    assert laboratory("fit", tmp_path / "plain", {**shared, "model.cache_embeddings": False}) == 0
    found, expected = (checkpoint(tmp_path / name)["state_dict"] for name in ("cached", "plain"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.stress
def test_autocast_is_in_the_embeddings(runs, laboratory, tmp_path) -> None:
    options = {
        **runs[0],
        "data.ood": {},
        "trainer.max_steps": 3,
        "trainer.precision": "bf16-mixed",
        "data.layout": "padded",
    }
    assert backbone_rows(laboratory, "fit", tmp_path / "cached", options) > 0
    assert backbone_rows(laboratory, "fit", tmp_path / "again", options) == 0
    assert laboratory("fit", tmp_path / "plain", {**options, "model.cache_embeddings": False}) == 0
    found, expected = (checkpoint(tmp_path / name)["state_dict"] for name in ("cached", "plain"))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # other micro-batches round otherwise in bfloat16


@pytest.mark.stress
def test_workers_prepare_batches_of_embeddings(runs, laboratory, tmp_path) -> None:
    options = {**runs[0], "data.num_workers": 1}
    assert backbone_rows(laboratory, "fit", tmp_path / "run", options) == 0
    found, expected = (checkpoint(run_dir)["state_dict"] for run_dir in (tmp_path / "run", runs[2]))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_stream_runs_through_the_frozen_backbone(runs, laboratory, tmp_path, caplog) -> None:
    options = {**runs[0], "data.train": {"path": str(laboratory.folder / "train.jsonl"), "streaming": True}}
    options |= {"data.ood": {}, "trainer.max_steps": 3, "trainer.val_check_interval": 3}
    assert backbone_rows(laboratory, "fit", tmp_path / "run", options) > 0
    state = checkpoint(tmp_path / "run")["state_dict"]
    start = checkpoint(runs[2])["state_dict"]
    assert torch.equal(*(each["reward_model.backbone.model.norm.weight"] for each in (state, start)))


def test_a_language_model_head_is_refused(runs, laboratory, tmp_path, capsys) -> None:
    assert laboratory("fit", tmp_path / "run", {**runs[0], "model.keep_lm_head": True}) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("aplot: "))
    assert "model.freeze_backbone" in line
    assert "set one of them to false" in line
