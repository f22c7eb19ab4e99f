"""A process that has imported everything and forks one run after another: python -m aplot_lightning.tuning.server FD.

It has one thread and starts no pool of them, and leaves CUDA alone, so that its children may do what any process may.
Requests and answers are JSON, over the connection whose file descriptor it is given:

    {"child": 1, "words": [...], "log": path, "folder": path, "environment": {...}}  ->  {"child": 1, "pid": ...}
    {"child": 1, "signal": 15}
                                              when the child and all its group ended:  {"child": 1, "code": ...}
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from aplot_lightning.tuning import tied
from aplot_lightning.tuning.launch import has_ended, signal_group

# what a run imports, at its start or somewhere on its way
MODULES = (
    *("aplot_lightning.training.cli", "aplot_lightning.training.trial_report", "aplot_lightning.model.reward_model"),
    *("aplot_lightning.model.tree.flex", "aplot_lightning.data.world", "ot", "optuna", "accelerate", "networkx"),
    *("transformers.modeling_utils", "transformers.models.auto.modeling_auto", "safetensors.torch", "psutil"),
    *("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"),
    *("transformers.models.bert.tokenization_bert", "transformers.models.auto.tokenization_auto"),
    *("torch.utils.tensorboard", "tensorboard.backend.event_processing.event_accumulator"),
    *("tensorboard.plugins.hparams.summary_v2", "tensorboard.plugins.custom_scalar.layout_pb2"),
    *("pandas", "pyarrow.parquet", "pyarrow.dataset", "matplotlib.backends.backend_agg"),
)


def main(arguments: Sequence[str]) -> None:
    connection = Connection(int(arguments[0]))
    for name in MODULES:
        with contextlib.suppress(ImportError):  # of another version, or an extra that is not installed
            import_module(name)
    if mapping := sys.modules.get("transformers.conversion_mapping"):
        with contextlib.suppress(Exception):  # a table that Transformers makes once a process
            mapping.get_checkpoint_conversion_mapping("bert")
    gc.collect()
    gc.freeze()  # what is here stays, in the children too: their collector need not look at it
    with contextlib.suppress(EOFError, BrokenPipeError):  # the launcher has closed, or is gone
        Server(connection).serve()


class Server:
    """Forks children on request and tells of their ends, until the connection ends (EOFError)."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.children: dict[int, int] = {}  # number -> process
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, or Python would not wake
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def serve(self) -> NoReturn:
        while True:
            ready = wait([self.connection, self._woken])
            if self._woken in ready:
                os.read(self._woken, 1 << 12)
                self._reap()
            if self.connection in ready:
                self._answer(json.loads(self.connection.recv_bytes()))

    def _answer(self, request: Mapping[str, Any]) -> None:
        number = request["child"]
        if "signal" not in request:
            self.children[number] = process = self._fork(request)
            self._tell(child=number, pid=process)
        elif number in self.children:  # not waited for yet, so the id is its own
            signal_group(self.children[number], request["signal"])

    def _fork(self, request: Mapping[str, Any]) -> int:
        """Starts a run. Returns its process, which leads a group of its own by then."""
        process = os.fork()
        if not process:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.connection.close()
            os.close(self._woken)
            os.close(self._wake)
            live(request)
        with contextlib.suppress(OSError):  # the child does the same: whoever comes first
            os.setpgid(process, process)
        return process

    def _reap(self) -> None:
        for number, process in list(self.children.items()):
            if has_ended(process):
                signal_group(process, signal.SIGKILL)  # ranks and workers that outlive the first process
                _, status = os.waitpid(process, 0)
                del self.children[number]
                self._tell(child=number, code=os.waitstatus_to_exitcode(status))

    def _tell(self, **answer: int) -> None:
        self.connection.send_bytes(json.dumps(answer).encode())


def live(request: Mapping[str, Any]) -> NoReturn:
    """The life of a forked process."""
    try:
        become(request)
        code = run(request["words"])
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)


def become(request: Mapping[str, Any]) -> None:
    """Makes this forked process what ``python -m aplot_lightning`` would be."""
    os.setpgid(0, 0)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(log, standard)
    os.close(log)
    os.chdir(request["folder"])
    ties = os.environ.get(tied.VARIABLE, "")
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[tied.VARIABLE] = tied.identity(os.getpid()) or ties
    program = import_module("aplot_lightning.__main__")
    sys.argv = [str(program.__file__), *request["words"]]
    # what ranks are started with: python -m aplot_lightning
    own: Any = sys.modules["__main__"]
    own.__spec__, own.__file__ = program.__spec__, program.__file__
    threads, torch = os.environ.get("OMP_NUM_THREADS", ""), sys.modules.get("torch")
    if threads and torch is not None:  # OpenMP has read the variable in the server
        torch.set_num_threads(int(threads.split(",")[0]))


def run(words: list[str]) -> int:
    from aplot_lightning.cli import main

    try:
        return main(words)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1


def leave(code: int) -> NoReturn:
    """Ends a forked process as the interpreter ends one, but for taking apart what the server has imported."""
    threads: Any = threading._shutdown  # type: ignore[attr-defined]
    for end in (threads, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        with contextlib.suppress(Exception):
            end()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
