"""The loaders' items: optimizer batches as lists of micro-batches, and the batches of an evaluation set.

Both already hold only this rank's share, so that ranks never see a pair twice and each loader is equally long on all.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from aplot_lightning.data.batching import Layout, collate, rank_micro_batches
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.evaluation_set import EvaluationSet
from aplot_lightning.data.plan import BatchPlan
from aplot_lightning.types import Batch

if TYPE_CHECKING:
    import lightning as L


def loader(dataset: Dataset, sampler: DistributedSampler, workers: int, seed: int) -> DataLoader:
    """A loader whose items are the data set's own, ready-made batches."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_run,
        # a generator of its own: the loader would otherwise draw from the global random stream
        generator=torch.Generator().manual_seed(seed),
    )


class OptimizerBatches(Dataset):
    """This rank's share of optimizer batch (epoch, offset), as a list of micro-batches."""

    name = "train"

    def __init__(
        self, encoded: EncodedComparisons, plan: BatchPlan, layout: Layout, rank: int = 0, world: int = 1
    ) -> None:
        self.encoded = encoded
        self.plan = plan
        self.layout = layout
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.plan.batches_per_epoch

    def __getitem__(self, place: tuple[int, int]) -> list[Batch]:
        comparisons = self.plan.batch(*place)
        cut = rank_micro_batches(self.encoded, comparisons, self.layout, self.rank, self.world)
        return [collate(self.encoded, part, self.layout) for part in cut]


class EvaluationBatches(Dataset):
    """This rank's batches of an evaluation set, longest first; ranks get equal numbers of them, some perhaps empty."""

    def __init__(self, evaluated: EvaluationSet, layout: Layout, rank: int = 0, world: int = 1) -> None:
        self.name = evaluated.name
        self.encoded = evaluated.encoded
        self.layout = layout
        self.batches = rank_micro_batches(self.encoded, np.arange(len(self.encoded)), layout, rank, world)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> Batch:
        return collate(self.encoded, self.batches[place], self.layout)


class OwnBatches(DistributedSampler):
    """All items in order, for data sets that already hold this rank's share; Lightning leaves such a sampler alone."""

    def __iter__(self) -> Iterator[Any]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


class StepSampler(OwnBatches):
    """The places (epoch, offset) of the optimizer batches from the trainer's step to the end of its epoch.

    A pure function of the step: a resumed run goes on in mid-epoch with the batch that the stopped one would have had.
    """

    def __init__(self, dataset: OptimizerBatches, trainer: L.Trainer) -> None:
        super().__init__(dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, shuffle=False)
        self.trainer = trainer

    def __iter__(self) -> Iterator[tuple[int, int]]:
        limit = self.trainer.limit_train_batches  # makes epochs shorter: a number of batches, or a share of them
        length = int(len(self) * limit) if isinstance(limit, float) else min(len(self), limit)
        epoch, start = divmod(self.trainer.global_step, length)
        return iter([(epoch, offset) for offset in range(start, length)])


def _leave_signals_to_the_run(worker: int) -> None:
    """A worker gets what its process group gets, and is stopped by its run after the step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
