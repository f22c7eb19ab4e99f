"""Work on the record batches of stored comparisons, alone or in several processes, its results appended to files.

Helpers are started as programs of their own and not forked: a fork takes over other threads' locks (the tokenizer's
pool, Arrow's, Lightning's), and may then wait for ever. Nor are they `multiprocessing`'s spawned ones, which run the
user's script again where it has no ``if __name__ == "__main__"``. Each costs about two seconds for its imports, so
that few comparisons are done in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from aplot_lightning.data.preparation.arrays import ArrayWriter
from aplot_lightning.errors import UserError

ALONE = 20_000  # comparisons below which this process does them by itself
BATCHES = 8  # record batches a helper does at once
HELPER = "aplot_lightning.data.preparation.helper"

Task = Callable[[int, int], Iterator[Mapping[str, np.ndarray]]]  # arrays of the record batches from one to another


def run(task: Task, batches: int, comparisons: int, workers: int | None, writer: ArrayWriter) -> None:
    """Appends to `writer` what the task yields for all record batches, in their order.

    Args:
        task: can be pickled where helpers are to do it; yields arrays even for no batches at all.
        batches: record batches.
        comparisons: what they hold.
        workers: processes; by default as many as there are cores where that is worth it.
        writer: to a folder in which parts may be kept meanwhile.

    Raises:
        UserError: the task's own, or a helper was ended from outside.
        OSError: the task's own, such as a full disk.
    """
    ranges = [(start, min(start + BATCHES, batches)) for start in range(0, batches, BATCHES)] or [(0, 0)]
    count = min(workers or _cores(), len(ranges))
    if count > 1 and (comparisons > ALONE or workers is not None):
        helpers = _started(task, count)
        if helpers:
            _share(ranges, helpers, writer)
            return
    for start, stop in ranges:
        for arrays in task(start, stop):
            writer.append(arrays)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(ranges: list[tuple[int, int]], helpers: list[Helper], writer: ArrayWriter) -> None:
    """Deals the ranges to the helpers; each result is appended, and its files removed, when its turn has come."""
    idle: queue.SimpleQueue[Helper] = queue.SimpleQueue()
    for helper in helpers:
        idle.put(helper)

    def work(place: int) -> Path:
        helper = idle.get()
        try:
            folder = writer.folder / f"part-{place}"
            folder.mkdir()
            helper.do(*ranges[place], folder)
            return folder
        finally:
            idle.put(helper)

    with ThreadPoolExecutor(len(helpers)) as pool:
        try:
            futures = [pool.submit(work, place) for place in range(len(ranges))]
            for future in futures:
                writer.absorb(future.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for helper in helpers:
                helper.end()


def _started(task: Task, count: int) -> list[Helper]:
    """Helpers that have the task; none, with a warning, where it cannot be handed over."""
    helpers: list[Helper] = []
    try:
        content = pickle.dumps(task)
        helpers += [Helper(content) for _ in range(count)]
        for helper in helpers:
            helper.wait_until_ready()
    except Exception as error:  # whatever pickle meets in a tokenizer of the user's own
        for helper in helpers:
            helper.end()
        warnings.warn(f"data is prepared by one process, helpers do not start: {error}", stacklevel=2)
        return []
    return helpers


class Helper:
    """A process that does ranges of one task (helper.py), until `end` or the end of this process."""

    def __init__(self, task: bytes) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        alone = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._task = task
        self._process = subprocess.Popen(
            [sys.executable, "-m", HELPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **alone},
        )

    def wait_until_ready(self) -> None:
        """Hands the task over. Raises RuntimeError where the process cannot take it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its last words say why
            self._process.stdin.write(len(self._task).to_bytes(8, "big") + self._task)
            self._process.stdin.flush()
        if self._answer() != {"ready": True}:
            raise RuntimeError(self._last_words())

    def do(self, start: int, stop: int, folder: Path) -> None:
        """Does the record batches from `start` to `stop` into a folder. Raises as `run` does."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([start, stop, str(folder)]).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._answer()
        except (BrokenPipeError, ValueError):  # it has ended, or was ended by this process
            answer = None
        if answer is None:
            raise UserError(
                f"data.preparation_workers: a process that prepares data ended by itself ({self._last_words()}): "
                "lower data.preparation_workers if memory is short"
            )
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "errno" in answer:
            raise OSError(answer["errno"], answer["message"])
        if "error" in answer:
            raise RuntimeError(f"in a process that prepares data:\n{answer['error']}")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"
