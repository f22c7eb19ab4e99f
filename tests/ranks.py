"""Two gloo ranks as forked processes, for functions that talk to other ranks."""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch


def on_two_ranks(function: Callable[[int], None], folder: Path) -> None:
    """Calls `function` with its rank in two processes of one process group, which must both succeed.

    Args:
        function: called with 0 or 1.
        folder: for the file through which the ranks find each other.
    """
    context = multiprocessing.get_context("fork")
    store = folder / "store"
    processes = [context.Process(target=_run, args=(function, store, rank)) for rank in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about forking with threads
        for process in processes:
            process.start()
    for process in processes:
        process.join(timeout=120)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def _run(function: Callable[[int], None], store: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        function(rank)
        torch.distributed.barrier()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # PyTorch's threads sometimes abort the interpreter's own exit
