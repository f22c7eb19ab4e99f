"""RewardModelingModule: the reward model and its objective as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from aplot_lightning.errors import NotFiniteError, RunError, UserError
from aplot_lightning.evaluation.metrics import PairPredictions, ood_mean
from aplot_lightning.model import RewardModel
from aplot_lightning.model.heads import Head
from aplot_lightning.objectives import Objective
from aplot_lightning.training.exact_batch import StepResult, whole_batch_step
from aplot_lightning.types import Batch


class RewardModelingModule(L.LightningModule):
    """Trains a reward model on optimizer batches of preference pairs.

    One item of the training loader is one optimizer batch of this rank, already cut into micro-batches; gradients are
    exactly those of the objective over the whole optimizer batch (see exact_batch.py). AdamW with linear warm-up and
    cosine decay to zero, stepped once per optimizer batch.

    Args:
        backbone: a folder, a run, a hub name, or `world-decoder`, the small decoder of the embedded preference world.
        objective: what is minimised; Bradley-Terry by default.
        init_from: a run, checkpoint or folder whose weights start the run, in place of the backbone's.
        pooling: which state the head reads: the scored token's (last), the encoder's own classification path, or the
            mean over tokens; auto takes what the architecture's own sequence classification does.
        dtype: of the backbone's weights; rewards and losses are float32 in any case.
        attention: the attention implementation of Transformers, such as sdpa or flash_attention_2.
        dropout: of the backbone; off by default.
        learning_rate: the highest, after warm-up.
        weight_decay: decoupled, on matrices only (not on biases and norms).
        warmup_share: share of the optimizer steps in which the learning rate rises.
        head: what makes a reward of the embedding, and what else the objective needs; null for the head that the model
            comes with, else a linear one.
        keep_lm_head: keeps and trains the backbone's language-model head too, for objectives that read the probability
            of the chosen text; the backbone must be a causal language model.
    """

    def __init__(
        self,
        backbone: str,
        objective: Objective | None = None,
        init_from: str | None = None,
        pooling: Literal["auto", "last", "classification", "mean"] = "auto",
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        attention: str | None = None,
        dropout: NonNegativeFloat = 0.0,
        learning_rate: PositiveFloat = 1e-5,
        weight_decay: NonNegativeFloat = 0.0,
        warmup_share: NonNegativeFloat = 0.03,
        head: Head | None = None,
        keep_lm_head: bool = False,
    ) -> None:
        super().__init__()
        self.reward_model = RewardModel.from_backbone(
            init_from or backbone,
            pooling=pooling,
            dtype=dtype,
            attention=attention,
            dropout=float(dropout),
            head=head,
            keep_lm_head=keep_lm_head,
        )
        self.objective = objective or Objective()
        # plain floats: jsonargparse's own number types would end in the checkpoint, which must load without pickles
        self.learning_rate = float(learning_rate)
        self.weight_decay = float(weight_decay)
        self.warmup_share = float(warmup_share)
        self.last_step: StepResult | None = None  # what the latest optimizer step computed, for callbacks to look at
        self._set_names: list[str] = []
        self._predictions: dict[str, PairPredictions] = {}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the backbone, which the data module encodes with."""
        return self.reward_model.tokenizer

    @property
    def packing_refusal(self) -> str | None:
        """Why the model takes no packed batches, which the data module asks; None where it does."""
        return self.reward_model.packing_refusal

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.reward_model.max_length = data.max_length
            if stage == "fit":
                self.require_columns(data.columns)

    def fitting_length(self, length: int) -> int:
        """`length`, or the most tokens that the backbone has positions for, with a warning."""
        return fitting_length(length, self.reward_model.backbone.position_limit)

    def require_columns(self, missing: Mapping[str, int]) -> None:
        """Raises UserError where the objective needs a column that training pairs lack, or another head.

        Args:
            missing: each column that the training data has, and how many pairs are without a value.
        """
        self.objective.require(missing, self.reward_model.tensor_names, self.reward_model.head_is_linear)
        for column, part in self.objective.columns.items():
            if missing[column]:
                raise UserError(
                    f'{part} needs the column "{column}", which {missing[column]} training pairs do not have: add it '
                    f"to all rows of data.train or choose another part in place of {part}"
                )

    # Training

    def on_train_start(self) -> None:
        fetcher = self.trainer.fit_loop._data_fetcher
        if self.global_step and fetcher is not None:
            # the loader's iterator was made to count the steps, before Lightning restored the one to go on from
            iter(fetcher)

    def training_step(self, micro_batches: list[Batch], batch_index: int) -> Tensor:
        self._reseed()
        self.zero_grad(set_to_none=True)
        try:
            step = whole_batch_step(self.reward_model, self.objective, micro_batches)
        except NotFiniteError as error:
            raise RunError(self._not_finite(str(error))) from error
        self.last_step = step
        self._log_step(step)
        return step.loss

    def optimizer_zero_grad(self, *arguments: Any, **options: Any) -> None:
        """Nothing: training_step zeroes the gradients, before its own backward passes rather than after them."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stops before anything that is not finite reaches the weights: the step's one wait for the device.

        Raises RunError with the step and the likely causes; the last checkpoint stays as it is.
        """
        assert self.last_step is not None
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if torch.isfinite(norm + self.last_step.result.loss):
            return
        what = "a gradient" if torch.isfinite(self.last_step.result.loss) else "the loss"
        raise RunError(self._not_finite(f"{what} is not finite"))

    def _not_finite(self, what: str) -> str:
        return (
            f"step {self.global_step + 1}: {what}; the run stops before it reaches the weights, and the last "
            "checkpoint stays. Likely causes: a learning rate that is too high (model.learning_rate "
            f"{self.learning_rate:g}), half precision (try --trainer.precision 32-true), or weights that were not "
            "finite to begin with"
        )

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.learning_rate, fused=True)
        schedule = LambdaLR(optimizer, self._learning_rate_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_share(self, step: int) -> float:
        """Linear warm-up, then cosine to zero at the run's last optimizer step."""
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            total = self.trainer.num_training_batches
        warmup = self.warmup_share * total
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))

    def _reseed(self) -> None:
        """One seed a step and rank, so that a resumed run draws the dropout masks of an undisturbed one."""
        data = getattr(self.trainer, "datamodule", None)
        words = [getattr(data, "seed", 0), self.global_step, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))

    def _log_step(self, step: StepResult) -> None:
        gaps = step.result.gaps
        target = step.pairs.columns.get("target", torch.ones_like(gaps))
        counted = target != 0.5
        right = ((gaps * (2 * target - 1)) > 0).float() * counted
        values = {
            "train/loss": step.result.loss,
            "train/accuracy": right.sum() / counted.sum().clamp(min=1),
            "train/gap": gaps.mean(),
        }
        self.log_dict(values, batch_size=len(gaps), rank_zero_only=True)
        self.log("loss", step.result.loss, prog_bar=True, logger=False, batch_size=len(gaps), rank_zero_only=True)

    # Evaluation

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
        chosen, rejected = self.reward_model(batch).pairs(batch.pairs)
        return {"index": batch.pairs.columns["index"], "chosen": chosen.rewards, "rejected": rejected.rewards}

    def on_validation_epoch_end(self) -> None:
        self._log_sets()

    def on_test_epoch_end(self) -> None:
        # not to TensorBoard: the best checkpoint's figures would end as a last point of the learning curves
        self._log_sets(logger=False)

    def _start_predictions(self, loaders: Any) -> None:
        names = [loader.dataset.name for loader in loaders] if isinstance(loaders, list) else [loaders.dataset.name]
        self._set_names = names
        self._predictions = {name: PairPredictions().to(self.device) for name in names}

    def _predict(self, batch: Batch, dataloader_idx: int) -> None:
        chosen, rejected = self.reward_model(batch).pairs(batch.pairs)
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

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what RewardModel.from_pretrained needs to build the model without the backbone's folder."""
        checkpoint["reward_model"] = self.reward_model.describe()


def fitting_length(length: int, limit: int | None) -> int:
    """`length`, or the `limit` of positions that the backbone has learned, with a warning."""
    if limit is None or length <= limit:
        return length
    rank_zero_warn(f"data.max_length is {length}, but the backbone has {limit} positions: {limit} is used")
    return limit
