"""The private names of Lightning that this project uses, each with the reason. No other file uses any."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after the training step that just ended.

    A resumed run skips a validation that was due at the step of its checkpoint, so a checkpoint of that step must wait
    for the validation. Lightning decides this in one private method, by val_check_interval (steps, a share of an epoch
    or a time), check_val_every_n_epoch, should_stop and the kind of the loader. Without it, resumed runs lose
    validations.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return trainer.limit_val_batches != 0 and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def restart_training_loader(trainer: L.Trainer) -> None:
    """Makes the iterator of the training loader anew at the start of a resumed run.

    Lightning makes it before it restores the step that the run resumes at, which StepSampler reads. Without this, a
    resumed run trains on the first batches again.
    """
    fetcher = trainer.fit_loop._data_fetcher
    if trainer.global_step and fetcher is not None:
        iter(fetcher)


def use_whole_checkpoints(strategy: ModelParallelStrategy) -> bool:
    """Makes FSDP2 write one file per checkpoint, not a folder of shards. Returns False if it already did.

    The option is only an argument of the strategy, whose default is True. Without this, `from_pretrained` and other
    strategies could not read checkpoints of runs that do not set it.
    """
    if not strategy._save_distributed_checkpoint:
        return False
    strategy._save_distributed_checkpoint = False
    return True


def share_weights_over_all_ranks(strategy: ModelParallelStrategy, ranks: int) -> None:
    """Resolves sizes of "auto": all ranks share the weights, none splits tensors.

    Lightning's "auto" shares them within a node and splits tensors over the others; the sizes are only arguments of the
    strategy. Without this, a run on several nodes would need both in its config.
    """
    if strategy._data_parallel_size == "auto":
        strategy._data_parallel_size = ranks
    if strategy._tensor_parallel_size == "auto":
        strategy._tensor_parallel_size = 1


def averages_buffers(callback: WeightAveraging) -> bool:
    """Whether a callback also averages buffers, which it keeps in a private attribute.

    Without it, averaging whole numbers could not be refused, and the average would be wrong.
    """
    return callback._use_buffers
