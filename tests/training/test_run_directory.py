"""The lock of a run directory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.training.run_directory import check_writable, lock_run, unlock_runs

CONTEXT: Any = multiprocessing.get_context("fork")


def hold(run_dir: Path, pipe: Any) -> None:
    """Locks the directory, forks a worker, and waits to be killed."""
    lock_run(run_dir)
    worker = CONTEXT.Process(target=time.sleep, args=(60,))
    worker.start()
    pipe.send(worker.pid)
    time.sleep(60)


def test_a_worker_that_outlives_its_killed_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    ours, theirs = CONTEXT.Pipe()
    run = CONTEXT.Process(target=hold, args=(tmp_path / "run", theirs))
    run.start()
    worker = ours.recv()
    with pytest.raises(UserError, match=rf"in use by another run \(process {run.pid} on"):
        lock_run(tmp_path / "run")
    run.kill()
    run.join()
    try:
        os.kill(worker, 0)  # it still runs
        lock_run(tmp_path / "run")
        unlock_runs()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run_dir: .*file is a file; name a folder"):
        check_writable(tmp_path / "file" / "run")
