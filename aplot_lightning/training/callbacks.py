"""What is measured around the steps: throughput and margin diagnostics."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from aplot_lightning.objectives import TransportMargin
from aplot_lightning.training.flops import peak_flops, training_flops
from aplot_lightning.training.gradient_cache import StepResult
from aplot_lightning.transport import marginal_error, plan_entropy, transport_cost
from aplot_lightning.types import Batch


class Throughput(L.Callback):
    """Counts pairs and tokens of the steps after the first, without the time of validation and saving.

    Logs `throughput/pairs_per_second`, `throughput/tokens_per_second` (tokens of whole conversations without padding: a
    prompt counts once for each of its responses, however the batch is laid out), `throughput/padding_fraction` (of the
    tokens that are computed), and on a GPU whose peak is known `throughput/mfu` (model FLOPs utilisation, flops.py).
    """

    def __init__(self) -> None:
        self.counts: dict[str, Any] = {
            "steps": 0,
            "pairs": 0,
            "timed_pairs": 0,
            "tokens": 0,
            "cells": 0,
            "padding": 0,
            "flops": 0.0,
            "seconds": 0.0,
        }
        self._since: float | None = None
        self._saved = 0.0  # seconds of saving before then
        self._peak: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {name: float(n) if name in ("seconds", "flops") else int(n) for name, n in self.counts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts |= state

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._peak = peak_flops(trainer, module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: list[Batch], batch_index: int
    ) -> None:
        now = time.perf_counter()
        counts = self.counts
        pairs = len(module.last_step.pairs)
        counts["steps"] += 1
        counts["pairs"] += pairs
        if self._since is not None:
            counts["seconds"] += now - self._since - (_saving_seconds(trainer) - self._saved)
            counts["timed_pairs"] += pairs
            # of numbers that the loader left: counting waits for no device; other ranks have about as many
            counts["tokens"] += trainer.world_size * sum(sum(part.lengths) for part in batch)
            counts["cells"] += trainer.world_size * sum(part.computed_tokens for part in batch)
            counts["padding"] += trainer.world_size * sum(part.padding for part in batch)
            if self._peak is not None:
                counts["flops"] += training_flops(module.reward_model.backbone, batch)
        self._since, self._saved = now, _saving_seconds(trainer)
        if counts["seconds"] and _logs(trainer):
            module.log_dict({f"throughput/{name}": rate for name, rate in self._rates().items()}, rank_zero_only=True)

    def _rates(self) -> dict[str, float]:
        counts = self.counts
        rates = {
            "pairs_per_second": counts["timed_pairs"] / counts["seconds"],
            "tokens_per_second": counts["tokens"] / counts["seconds"],
            "padding_fraction": counts["padding"] / max(1, counts["cells"]),
        }
        if self._peak is not None:
            rates["mfu"] = counts["flops"] / counts["seconds"] / self._peak
        return rates

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._since is not None:
            self._since += time.perf_counter() - self._paused

    def summary(self) -> dict[str, float | int | None]:
        """The `train` part of metrics.json."""
        counts = self.state_dict()
        seconds = counts["seconds"]
        return {
            "steps": counts["steps"],
            "pairs": counts["pairs"],
            "seconds": seconds,
            "pairs_per_second": counts["timed_pairs"] / seconds if seconds else None,
            "tokens_per_second": counts["tokens"] / seconds if seconds else None,
        }


class MarginDiagnostics(L.Callback):
    """Shows which pairs got which margin: `margin/*` and `transport/*` tags, a plan picture, and a table of pairs.

    The table, `diagnostics/margins.parquet`, holds the most recent logged pairs: step, margin, similarity (the cosine
    of the pair's embeddings), cost (the pair's own cell of the cost matrix) and gap.

    Args:
        run_dir: where the table is written.
        keep: logged steps in the table.
    """

    def __init__(self, run_dir: Path, keep: int = 100) -> None:
        self.path = run_dir / "diagnostics" / "margins.parquet"
        self.rows: deque[dict[str, Any]] = deque(maxlen=keep)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *arguments: Any) -> None:
        step = module.last_step
        if not _logs(trainer) or not step.result.margins.any():
            return
        margins = step.result.margins.float()
        cost, similarity = _own_cost(step, module.objective.margin)
        values = {
            "margin/mean": margins.mean(),
            "margin/p10": margins.quantile(0.1),
            "margin/p90": margins.quantile(0.9),
        }
        if len(margins) > 1 and margins.std() > 0:
            values["margin/hardness_correlation"] = spearman_corrcoef(margins, cost)
        if isinstance(module.objective.margin, TransportMargin):
            plan = module.objective.margin.solve(*step.scores.pairs(step.pairs))[1]
            values["transport/plan_entropy"] = plan_entropy(plan)
            values["transport/marginal_error"] = marginal_error(plan)
        module.log_dict(values, rank_zero_only=True)
        table = {"margin": margins, "similarity": similarity, "cost": cost, "gap": step.result.gaps.float()}
        self.rows.append({"step": [trainer.global_step] * len(margins), **{k: v.tolist() for k, v in table.items()}})

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        step = module.last_step
        if not trainer.is_global_zero or step is None or not self.rows or trainer.state.fn != "fit":
            return
        if not step.result.loss.isfinite():  # of a skipped step
            return
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            add_image = logger.experiment.add_image
            add_image("margin/margins", _picture(step.result.margins[None]), trainer.global_step)
            if isinstance(module.objective.margin, TransportMargin):
                plan = module.objective.margin.solve(*step.scores.pairs(step.pairs))[1]
                add_image("transport/plan", _picture(plan), trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not self.rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables([pa.table(row) for row in self.rows]), self.path)


def _saving_seconds(trainer: L.Trainer) -> float:
    """What the trainer of the command line has spent on saving; a plain one does not tell."""
    return getattr(trainer, "saving_seconds", 0.0)


def _logs(trainer: L.Trainer) -> bool:
    """Whether this step's values go to the logger."""
    return trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def _own_cost(step: StepResult, margin: Any) -> tuple[Tensor, Tensor]:
    """Each pair's own cell of the cost matrix, and its cosine, (n,) each; the default cost where it has none."""
    chosen, rejected = step.scores.pairs(step.pairs)
    arguments = chosen.rewards, rejected.rewards, chosen.embeddings, rejected.embeddings
    similarity = transport_cost(*arguments, reward_weight=0.0, similarity_weight=1.0).diagonal()
    if isinstance(margin, TransportMargin):
        return margin.solve(chosen, rejected)[0].diagonal(), similarity
    return transport_cost(*arguments).diagonal(), similarity


def _picture(values: Tensor, least: int = 256) -> Tensor:
    """A (1, height, width) grey picture of a matrix, brightest at its largest value, enlarged to be seen."""
    values = values.detach().float().cpu()
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low).clamp(min=1e-12)
    factor = max(1, least // values.shape[1])
    return torch.kron(scaled, torch.ones(max(factor, 16 if values.shape[0] == 1 else 1), factor))[None]
