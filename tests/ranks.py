"""Two ranks as processes of a fork server, which imports once: imports take longer than the runs of the tests."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from tests.processes import run_command

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["aplot_lightning.training.cli", "aplot_lightning.model", "tests.ranks"])


def on_two_ranks(function: Callable[[int], None], folder: Path) -> None:
    """Calls `function` with its rank in two processes of one process group, which must both succeed.

    Args:
        function: called with 0 or 1; it can be pickled.
        folder: for the file through which the ranks find each other.
    """
    assert _exit_codes(_call, [(function, folder / "store", rank) for rank in range(2)]) == [0, 0]


def run_on_two_ranks(arguments: list[str], log: Path, environment: dict[str, str]) -> list[int | None]:
    """Runs a command of `aplot` in two processes and returns their exit codes.

    Args:
        arguments: of the command line.
        log: the file for the output of both.
        environment: for both, beside the variables of their ranks.
    """
    return _exit_codes(_command, [(arguments, log, {**os.environ, **environment}, rank) for rank in range(2)])


def _exit_codes(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> list[int | None]:
    processes = [CONTEXT.Process(target=target, args=own) for own in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def _call(function: Callable[[int], None], store: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        function(rank)
        torch.distributed.barrier()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # PyTorch's threads sometimes abort the interpreter's own exit


def _command(arguments: list[str], log: Path, environment: dict[str, str], rank: int) -> None:
    os.environ.clear()
    rank_zero_only.rank = rank  # Lightning sets it when it is imported
    run_command(arguments, log, {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"})
