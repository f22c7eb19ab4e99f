"""The part of the module that evaluates: every pair of every set once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor

from aplot_lightning.evaluation.metrics import PairPredictions, ood_mean
from aplot_lightning.model import RewardModel
from aplot_lightning.types import Batch, Scores


class EvaluationModule(L.LightningModule):
    """A reward model whose validation, test and prediction steps go over the named sets of the data module.

    Args:
        reward_model: what is evaluated.

    Attributes:
        current_batch: the micro-batch that the model ran on last, used in error messages.
    """

    def __init__(self, reward_model: RewardModel) -> None:
        super().__init__()
        self.reward_model = reward_model
        self.current_batch: Batch | None = None
        self._set_names: list[str] = []
        self._predictions: dict[str, PairPredictions] = {}

    def _score(self, batch: Batch) -> Scores:
        self.current_batch = batch
        scores: Scores = self.reward_model(batch)
        return scores

    def on_validation_epoch_start(self) -> None:
        self._start_predictions(self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        self._start_predictions(self.trainer.test_dataloaders)

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        self._predict(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        self._predict(batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """The rewards of a batch's pairs: chosen and rejected, (n,) float32 each, and their index in the set."""
        chosen, rejected = self._score(batch).pairs(batch.pairs)
        return {"index": batch.pairs.columns["index"], "chosen": chosen.rewards, "rejected": rejected.rewards}

    def on_validation_epoch_end(self) -> None:
        self._log_sets()

    def on_test_epoch_end(self) -> None:
        # not to TensorBoard: the best checkpoint's figures would become the last point of the learning curves
        self._log_sets(logger=False)

    def _start_predictions(self, loaders: Any) -> None:
        names = [loader.dataset.name for loader in loaders] if isinstance(loaders, list) else [loaders.dataset.name]
        self._set_names = names
        self._predictions = {name: PairPredictions().to(self.device) for name in names}

    def _predict(self, batch: Batch, dataloader_idx: int) -> None:
        chosen, rejected = self._score(batch).pairs(batch.pairs)
        self._predictions[self._set_names[dataloader_idx]].update(
            chosen_reward=chosen.rewards, rejected_reward=rejected.rewards, **batch.pairs.columns
        )

    def _log_sets(self, logger: bool = True) -> None:
        """Logs every metric of every set under `set/metric`, and their unweighted means over the OOD test sets."""
        sets = {name: predictions.compute() for name, predictions in self._predictions.items()}
        ood = {name: metrics for name, metrics in sets.items() if name.startswith("ood/")}
        names = next(iter(ood.values()), {})
        sets["ood_mean"] = {metric: ood_mean(ood, metric) for metric in names if metric != "pairs"}
        values = {
            f"{name}/{metric}": float(value)
            for name, metrics in sets.items()
            for metric, value in metrics.items()
            if value is not None
        }
        self.log_dict(values, logger=logger, rank_zero_only=True)

    def predictions(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Per-pair predictions of the last evaluation, by set: a table of 1-D tensors in the set's order."""
        return {name: predictions.table() for name, predictions in self._predictions.items()}
