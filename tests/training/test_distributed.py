"""What a strategy is given before the run, and what is said of it."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.strategies import ModelParallelStrategy

from aplot_lightning.training.checkpointing import AtomicCheckpointIO
from aplot_lightning.training.distributed import prepare_strategy


@pytest.mark.parametrize("shards", [True, False])
def test_sharded_checkpoints_are_one_file_and_who_asked_for_shards_is_told(shards: bool, tmp_path: Path, caplog):
    strategy = ModelParallelStrategy(save_distributed_checkpoint=shards)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, default_root_dir=tmp_path, logger=False)
    with caplog.at_level(logging.INFO):
        prepare_strategy(trainer)
        prepare_strategy(trainer)
    said = [record.message for record in caplog.records if "save_distributed_checkpoint" in record.message]
    assert len(said) == shards
    assert not strategy._save_distributed_checkpoint
    assert isinstance(strategy.checkpoint_io, AtomicCheckpointIO)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (2, 1)
