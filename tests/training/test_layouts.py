"""Packed and padded micro-batches through whole fits, and what is said where a model cannot be packed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from aplot_lightning import PreferenceDataModule, RewardModel, RewardModelingModule
from aplot_lightning.errors import UserError
from aplot_lightning.objectives import Objective, TransportMargin
from aplot_lightning.types import Batch
from tests.runs import PLAIN, plain_trainer

pytestmark = PLAIN


class Watch(L.Callback):
    """Keeps every step's loss and micro-batches."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.batches: list[list[Batch]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(float(module.last_step.result.loss))
        self.batches.append(batch)


def fit(laboratory, folder: Path, model: dict[str, Any] | None = None, **options: Any) -> tuple[Watch, dict[str, Any]]:
    torch.manual_seed(1)
    module = RewardModelingModule(
        str(laboratory.folder / "backbone"), Objective(margin=TransportMargin()), learning_rate=1e-3, **(model or {})
    )
    data = PreferenceDataModule(str(laboratory.folder / "train.jsonl"), max_length=64, **options)
    watch = Watch()
    trainer = plain_trainer(folder, gradient_clip_val=0.1, max_steps=4, callbacks=[watch])
    trainer.fit(module, datamodule=data)
    return watch, {name: tensor.detach() for name, tensor in module.state_dict().items()}


def test_every_layout_trains_to_the_same_weights(laboratory, tmp_path: Path) -> None:
    expected, weights = fit(laboratory, tmp_path, layout="padded", micro_batch_size=8)
    assert all(part.tree is None for batch in expected.batches for part in batch)
    cuts: list[dict[str, Any]] = [
        {"micro_batch_size": 8},
        {"layout": "packed"},
        {"micro_batch_tokens": 300},
        {"layout": "padded", "micro_batch_tokens": 300, "micro_batch_size": 5},
    ]
    for options in cuts:
        watch, other = fit(laboratory, tmp_path, **options)
        assert watch.losses == pytest.approx(expected.losses, abs=1e-6)
        torch.testing.assert_close(other, weights, rtol=0, atol=2e-5)
        parts = [part for batch in watch.batches for part in batch]
        assert all((part.tree is None) == (options.get("layout") == "padded") for part in parts)
        if "micro_batch_tokens" in options:
            assert all(part.computed_tokens <= 300 for part in parts)
            assert len(parts) > len(watch.batches)
    computed = [sum(part.computed_tokens for batch in w.batches for part in batch) for w in (expected, watch)]
    assert computed[1] < computed[0]


def test_a_packed_layout_that_cannot_be_is_refused_with_its_reason(laboratory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.layout: packed is not possible: .* eager, not sdpa; set it"):
        fit(laboratory, tmp_path, {"attention": "eager"}, layout="packed")


def test_rows_are_padded_with_one_line_where_they_cannot_be_packed(
    laboratory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        watch, _ = fit(laboratory, tmp_path, {"pooling": "mean"})
    assert all(part.tree is None for batch in watch.batches for part in batch)
    said = [record.message for record in caplog.records if "data.layout" in record.message]
    assert said == ["data.layout: rows are padded: model.pooling mean reads every token of a conversation"]


def test_padded_rows_do_not_try_to_pack(laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardModel, "packing_refusal", property(lambda model: pytest.fail("tried")))
    fit(laboratory, tmp_path, layout="padded")
