"""The module in a plain Lightning trainer: exact steps, weight decay, learning rates and dropout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from aplot_lightning import PreferenceDataModule, RewardModelingModule
from aplot_lightning.objectives import Objective, TransportMargin
from tests.runs import PLAIN, plain_trainer

OBJECTIVES = {"bt": Objective, "aplot": lambda: Objective(margin=TransportMargin())}

pytestmark = PLAIN


class Watch(L.Callback):
    """Keeps what every step used: its learning rate and its loss."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *arguments: Any) -> None:
        self.losses.append(float(module.last_step.result.loss))


def module(laboratory, **options: Any) -> RewardModelingModule:
    torch.manual_seed(1)
    return RewardModelingModule(str(laboratory.folder / "backbone"), **{"learning_rate": 3e-3, **options})


def data(laboratory, **options: Any) -> PreferenceDataModule:
    return PreferenceDataModule(str(laboratory.folder / "train.jsonl"), **{"max_length": 64, **options})


def fit(folder: Path, module: RewardModelingModule, data: PreferenceDataModule, **options: Any) -> Watch:
    watch = Watch()
    trainer = plain_trainer(folder, **{"max_steps": 5, "callbacks": [watch], **options})
    trainer.fit(module, datamodule=data)
    return watch


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weights_do_not_depend_on_the_micro_batch_size(laboratory, tmp_path: Path, objective: str) -> None:
    weights: list[dict[str, Tensor]] = []
    losses = []
    for size in (32, 8, 5):
        trained = module(laboratory, objective=OBJECTIVES[objective](), learning_rate=1e-3)
        options = {"gradient_clip_val": 0.1}  # small enough to act at every step
        losses.append(fit(tmp_path, trained, data(laboratory, micro_batch_size=size), **options).losses)
        weights.append({name: tensor.detach() for name, tensor in trained.state_dict().items()})
    start = module(laboratory).state_dict()
    assert (weights[0]["reward_model.head.weight"] - start["reward_model.head.weight"]).abs().max() > 1e-3
    for other in (1, 2):
        assert losses[other] == pytest.approx(losses[0], abs=1e-6)
        torch.testing.assert_close(weights[other], weights[0], rtol=0, atol=1e-5)


def test_clipping_acts_on_the_gradient_of_the_whole_batch(laboratory, tmp_path: Path) -> None:
    """The norm that the optimizer sees is the limit itself, which clipping each micro-batch would not give."""
    norms = []

    class Norms(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
            parameters = list(module.parameters())
            trainer.optimizers[0].register_step_post_hook(
                lambda *_: norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters])))
            )

    options = {"max_steps": 2, "gradient_clip_val": 0.01, "callbacks": [Norms()]}
    fit(tmp_path, module(laboratory, objective=OBJECTIVES["aplot"]()), data(laboratory, micro_batch_size=8), **options)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


@pytest.mark.parametrize(("share", "epochs", "steps"), [(0.0, 1, -1), (0.25, 2, -1), (0.25, -1, 13), (0.3, 3, 13)])
def test_the_learning_rate_warms_up_and_falls_as_a_cosine(
    laboratory, tmp_path: Path, share: float, epochs: int, steps: int
) -> None:
    watch = fit(tmp_path, module(laboratory, warmup_share=share), data(laboratory), max_epochs=epochs, max_steps=steps)
    total = len(watch.rates)
    assert total == (steps if steps > 0 else 10 * epochs)
    warmup = share * total
    expected = [
        (step + 1) / (warmup + 1)
        if step < warmup
        else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        for step in range(total)
    ]
    assert watch.rates == pytest.approx([3e-3 * value for value in expected], rel=1e-9)
    assert max(watch.rates) <= 3e-3
    assert watch.rates[-1] < 3e-3 * 0.1


def test_weight_decay_is_on_matrices_only(laboratory, tmp_path: Path) -> None:
    trained = module(laboratory, weight_decay=0.3)
    fit(tmp_path, trained, data(laboratory), max_steps=1)
    groups = trained.trainer.optimizers[0].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = dict(trained.named_parameters())
    assert len(decay) == len(names)
    assert all(decay[id(p)] == (0.0 if "norm" in name else 0.3) for name, p in names.items())
    assert any("norm" in name for name in names)


def test_dropout_acts_only_where_it_is_asked_for(laboratory, tmp_path: Path) -> None:
    """Two passes over one step's data differ with dropout, and not without; evaluation never has it."""
    for dropout, differs in ((0.0, False), (0.3, True)):
        trained = module(laboratory, dropout=dropout)
        read = data(laboratory)
        fit(tmp_path, trained, read, max_steps=1)
        batch = read.train_dataloader().dataset[0, 0][0]
        trained.train()
        first, second = trained.reward_model(batch).rewards, trained.reward_model(batch).rewards
        assert bool((first != second).any()) is differs
        trained.eval()
        torch.testing.assert_close(
            trained.reward_model(batch).rewards, trained.reward_model(batch).rewards, rtol=0, atol=0
        )


def test_a_run_repeats_itself_and_another_seed_differs(laboratory, tmp_path: Path) -> None:
    losses = [fit(tmp_path, module(laboratory, dropout=0.1), data(laboratory, seed=seed)).losses for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
