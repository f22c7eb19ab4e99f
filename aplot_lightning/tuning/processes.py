"""Commands of this package as child processes, each with its own log.

    with Launcher() as launcher:
        child = launcher.start(["fit", "--config", "base.yaml", "--run_dir", "runs/0"], log=Path("runs/0.log"))
        code = child.ended.result()

A child leads a process group. The group is killed when the child ends and within two seconds after this process ends,
even if this process is killed. So ranks and loader workers never stay behind. (POSIX only.)
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "aplot_lightning")
PARENT = "APLOT_PARENT"  # environment variable: the process that a child must not outlive
FORKSERVER_GONE = 255  # multiprocessing's exit code for a child whose fork server ended
# imported once by the fork server, so that its children start within a fraction of a second
PRELOADED = [
    "aplot_lightning.tuning.fork_server",
    *("aplot_lightning.training.cli", "aplot_lightning.training.trial_report", "aplot_lightning.model.reward_model"),
    *("aplot_lightning.data.world", "ot", "optuna", "pandas", "pyarrow.parquet", "pyarrow.dataset"),
    *("transformers.modeling_utils", "transformers.models.auto.modeling_auto", "safetensors.torch"),
    *("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"),
    *("transformers.models.bert.tokenization_bert", "transformers.models.auto.tokenization_auto"),
    *("torch.utils.tensorboard", "tensorboard.backend.event_processing.event_accumulator"),
    *("tensorboard.plugins.hparams.summary_v2", "matplotlib.backends.backend_agg"),
]
# the fork server must not have threads of libraries, and must not initialize CUDA, when it forks
FORKSERVER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
# set by the launcher of a distributed run; a child is not a rank of that run
RANK_VARIABLES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID"),
    "APLOT_RUN_DIR",
}


class Child:
    """A started command.

    Attributes:
        pid: its first process, which leads the process group.
        log: the file that holds its output.
        ended: the exit code, or minus the signal that killed it, once it ended. The whole group is gone by then.
    """

    def __init__(self, pid: int, log: Path, wait: Callable[[], int]) -> None:
        self.pid = pid
        self.log = log
        self.ended: Future[int] = Future()
        threading.Thread(target=self._wait, args=(wait,), daemon=True).start()

    def _wait(self, wait: Callable[[], int]) -> None:
        code = wait()
        _signal_group(self.pid, signal.SIGKILL)
        self.ended.set_result(code)

    def stop(self, grace: float = 30.0) -> int:
        """Sends SIGTERM, on which a run saves itself, and SIGKILL after `grace` seconds. Returns the exit code."""
        for number, timeout in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
            if not self.ended.done():
                _signal_group(self.pid, number)
            with suppress(TimeoutError):
                return self.ended.result(timeout)
        raise AssertionError("unreachable: SIGKILL ends every process")


class Launcher:
    """Starts commands. Leaving its `with` block kills those that still run.

    Args:
        preload: fork children from a server that has imported everything, which saves each its imports. The other
            ranks of a distributed run start as programs of their own.
        program: what to run without `preload`.
    """

    def __init__(self, *, preload: bool = False, program: Sequence[str] = PROGRAM) -> None:
        self.preload, self.program = preload, list(program)
        self._children: list[Child] = []

    def start(self, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> Child:
        """Starts `aplot ARGUMENTS` in the working directory of this process.

        Args:
            arguments: of the command line.
            log: its output is appended to this file; missing folders are created.
            environment: variables beside, or instead of, those of this process.
        """
        variables = {
            **{name: value for name, value in os.environ.items() if not _names_a_rank(name)},
            PARENT: str(os.getpid()),
            **(environment or {}),
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        start = _start_forked if self.preload else self._start_program
        child = start(list(arguments), log, variables)
        self._children = [*(each for each in self._children if not each.ended.done()), child]
        return child

    def _start_program(self, arguments: list[str], log: Path, environment: dict[str, str]) -> Child:
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*self.program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return Child(process.pid, log, process.wait)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.stop(grace=0)


def preloaded_context() -> Any:
    """The multiprocessing context whose processes are forked from a server that has imported everything.

    The server starts with the first call, and again if it was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = {name: os.environ.get(name) for name in FORKSERVER_ENVIRONMENT}
    os.environ.update(FORKSERVER_ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


def end_with_parent() -> None:
    """Kills this process group when the parent ends. Every child and every rank calls it first.

    The parent is the process that the environment names, or the present one if it names none.
    """
    parent, own = int(os.environ.get(PARENT, os.getppid())), os.getpid()
    if parent == own:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    os.environ[PARENT] = str(own)  # for the ranks that this process starts
    threading.Thread(target=watch, name="end with parent", daemon=True).start()


_collecting = threading.Lock()  # starting a process also collects others, and an exit code can be read only once


def _start_forked(arguments: list[str], log: Path, environment: dict[str, str]) -> Child:
    process = preloaded_context().Process(target=_run, args=(arguments, str(log.absolute()), environment))
    with _collecting:
        process.start()

    def wait() -> int:
        multiprocessing.connection.wait([process.sentinel])
        with _collecting:
            process.join()
        return -signal.SIGKILL if process.exitcode == FORKSERVER_GONE else process.exitcode

    return Child(process.pid, log, wait)


def _run(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """What a forked child does: the same as `python -m aplot_lightning ARGUMENTS` with this environment."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ.clear()
    # the system's parent is the fork server, which ends with the real one
    os.environ.update({**environment, PARENT: str(os.getppid())})
    end_with_parent()
    multiprocessing.set_start_method(None, force=True)  # loader workers start as they do in a program of its own
    program = import_module("aplot_lightning.__main__")
    sys.argv = [str(program.__file__), *arguments]
    sys.modules["__main__"].__spec__ = program.__spec__  # Lightning starts the other ranks with it
    torch, threads = sys.modules.get("torch"), environment.get("OMP_NUM_THREADS", "")
    if torch is not None and threads.isdigit():  # the server read the variable before this child set it
        torch.set_num_threads(int(threads))
    sys.exit(program.main(arguments))


def _names_a_rank(variable: str) -> bool:
    return variable in RANK_VARIABLES or variable.startswith("TORCHELASTIC_")


def _signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:  # all ended, or a forked child that does not lead its group yet
        with suppress(ProcessLookupError):
            os.kill(leader, number)
