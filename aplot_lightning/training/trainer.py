"""Lightning's Trainer with a clock for saving, and with one line for the faults of machines.

The faults: no memory, a full disk, a loader's worker or another rank that died.
"""

from __future__ import annotations

import errno
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
import torch.distributed

from aplot_lightning.errors import LostRankError, RunError
from aplot_lightning.types import Batch

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
# PyTorch raises plain RuntimeErrors for these three; only their texts distinguish them
NO_MEMORY = re.compile(r"can't allocate memory|out of memory")
DEAD_WORKER = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\)[^\n.]*")
DEAD_RANK = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Socket closed|Timed out waiting|Watchdog caught collective|"
    r"remote process exited|ncclRemoteError|Application timeout caused pair closure|heartbeat timeout"
)


class RunTrainer(L.Trainer):
    """The Trainer of the command line; its arguments are Lightning's own.

    Attributes:
        saving_seconds: spent on checkpoints so far, from gathering the weights to the last rank's return.
    """

    saving_seconds = 0.0

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        start = time.perf_counter()
        super().save_checkpoint(*arguments, **options)
        self.saving_seconds += time.perf_counter() - start

    def fit(self, *arguments: Any, **options: Any) -> None:
        with machine_faults(self), _handlers_kept():
            super().fit(*arguments, **options)

    def test(self, *arguments: Any, **options: Any) -> Any:
        with machine_faults(self):
            return super().test(*arguments, **options)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restores the signal handlers at the end.

    After an error Lightning restores those that its callbacks had set, and after ctrl-C it ignores further ones.
    """
    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # Windows lacks the last two
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set by Python
                signal.signal(number, handler)


@contextmanager
def machine_faults(trainer: L.Trainer) -> Iterator[None]:
    """Turns known faults of machines into RunErrors with one line, and passes on every other error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(_out_of_memory(trainer)) from error
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RunError(
            f"step {trainer.global_step}: {error.filename or 'a file'} could not be written ({error.strerror}); fix "
            "that and resume with --ckpt_path last"
        ) from error
    except RuntimeError as error:
        fault = _fault(trainer, error)
        if fault is None:
            raise
        raise fault from error


def _fault(trainer: L.Trainer, error: RuntimeError) -> RunError | None:
    message = str(error)
    if NO_MEMORY.search(message):
        return RunError(_out_of_memory(trainer))
    worker = DEAD_WORKER.search(message)
    if worker:
        return RunError(
            f"step {trainer.global_step + 1}: a process that prepares batches died ({worker[0]}), often because memory "
            "ran out: lower data.num_workers, and resume with --ckpt_path last"
        )
    if trainer.world_size > 1 and (isinstance(error, torch.distributed.DistError) or DEAD_RANK.search(message)):
        return LostRankError(
            f"step {trainer.global_step + 1}: rank {trainer.global_rank} lost another rank, which died or did not "
            f"answer in time ({_shortened(message)}): read the last lines of that rank, and resume with "
            "--ckpt_path last"
        )
    return None


def _shortened(message: str, limit: int = 160) -> str:
    found = DEAD_RANK.search(message)
    lines = [line for line in message.splitlines() if DEAD_RANK.search(line)]
    text = " ".join((lines[0] if lines else message).split())
    return text if len(text) <= limit else (found[0] if found else text[:limit])


def _out_of_memory(trainer: L.Trainer) -> str:
    module: Any = trainer.lightning_module
    batch: Batch | None = getattr(module, "current_batch", None)
    data: Any = getattr(trainer, "datamodule", None)
    sizes = {key: getattr(data, key, None) for key in ("micro_batch_tokens", "micro_batch_size")}
    settings = " or ".join(f"data.{key} (now {size})" for key, size in sizes.items() if size)
    training = getattr(module, "training", True)  # the trainer has reset its stage by now
    where = f"step {trainer.global_step + training}, rank {trainer.global_rank}: out of memory"
    if batch is not None:
        where += f" {'in' if training else 'when evaluating'} a micro-batch of {describe_batch(batch)}"
    return (
        f"{where}; lower {settings or 'data.micro_batch_size'}, which does not change the gradients, set "
        "model.gradient_checkpointing to true, or lower data.max_length"
    )


def describe_batch(batch: Batch) -> str:
    """How large a micro-batch is: its pairs, conversations, longest one, and tokens."""
    lengths = getattr(batch, "lengths", ())
    if lengths:
        longest = max(lengths)
    else:
        longest = int(batch.attention_mask.sum(1).max()) if batch.attention_mask is not None else 0
    tokens = batch.input_ids.numel()
    return f"{len(batch.pairs)} pairs, {batch.responses} conversations of up to {longest} tokens, {tokens} in all"
