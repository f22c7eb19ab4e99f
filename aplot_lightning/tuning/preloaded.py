"""Runs that are forked from a process that has imported everything: the launcher's side of server.py."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from aplot_lightning.errors import RunError
from aplot_lightning.tuning.launch import Child, Launcher, PlainLauncher, inherited

PROGRAM = (sys.executable, "-m", "aplot_lightning.tuning.server")
# the server must have one thread when it forks, and must not touch CUDA when a library asks whether it is there
QUIET = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


class PreloadedLauncher(Launcher):
    """Forks children from a server, which starts with the first of them, and again where it was killed.

    A child takes the variables of its environment as a new process would, but for those that libraries read when they
    are imported, such as HF_HOME: they are as they were when the server started.
    """

    def __init__(self) -> None:
        self._server: ServerProcess | None = None
        self._lock = threading.Lock()

    def start(self, words: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> Child:
        """As of every launcher. Raises RunError where the server does not start."""
        log.parent.mkdir(parents=True, exist_ok=True)
        log.open("ab").close()  # an error is told here
        request = {
            "words": list(words),
            "log": str(log.absolute()),
            "folder": os.getcwd(),
            "environment": {**inherited(), **(environment or {})},
        }
        with self._lock:
            if self._server is not None and self._server.gone:
                self._server.close()
                self._server = None
            if self._server is None:
                self._server = ServerProcess()
            return self._server.start(request, log)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


class ServerProcess:
    """A running server and the children that it has forked.

    Attributes:
        gone: whether it has ended; its children with it.
    """

    def __init__(self) -> None:
        self.gone = False
        self._children: dict[int, PreloadedChild] = {}
        self._numbers = itertools.count()
        self._sending = threading.Lock()
        descriptor, name = tempfile.mkstemp(prefix="aplot-server-", suffix=".log")
        os.close(descriptor)
        self._words = Path(name)
        self._connection, its = Pipe()
        self._launcher = PlainLauncher(PROGRAM, keep=[its.fileno()])
        self._process = self._launcher.start([str(its.fileno())], log=self._words, environment=QUIET)
        its.close()
        self._reader = threading.Thread(target=self._read, name="launcher of forks", daemon=True)
        self._reader.start()

    def start(self, request: Mapping[str, Any], log: Path) -> PreloadedChild:
        number = next(self._numbers)
        child = self._children[number] = PreloadedChild(self, number, log)
        self.send(child=number, **request)
        if self.gone:  # since the reader last looked at the children
            child.lost(self._last_words())
        child.started.result()
        return child

    def send(self, **request: Any) -> None:
        """Sends a request; one that finds no server any more is answered by its end."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(request).encode())

    def close(self) -> None:
        running = list(self._children.values())
        for child in running:
            child.signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):  # the server's own end is the children's at the latest
            for child in running:
                child.wait(5)
        self._launcher.close()
        self._reader.join()
        self._connection.close()
        self._words.unlink(missing_ok=True)

    def _read(self) -> None:
        """Hands the server's answers to the children, until it ends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                answer = json.loads(self._connection.recv_bytes())
                self._children[answer["child"]].told(answer)
                if "code" in answer:
                    del self._children[answer["child"]]
        self.gone = True
        self._process.wait()
        for child in list(self._children.values()):
            child.lost(self._last_words())

    def _last_words(self) -> str:
        lines = self._words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.wait()}"


class PreloadedChild(Child):
    """A process that the server has forked."""

    def __init__(self, server: ServerProcess, number: int, log: Path) -> None:
        self.log = log
        self.started: Future[None] = Future()
        self._server = server
        self._number = number
        self._code: int | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        self._ended.wait(timeout)
        if self._code is None:
            raise TimeoutError(f"process {self.pid} still runs")
        return self._code

    def signal(self, number: int) -> None:
        if self._code is None:
            self._server.send(child=self._number, signal=number)

    def told(self, answer: Mapping[str, int]) -> None:
        """Takes an answer of the server."""
        if "pid" in answer:
            self.pid = answer["pid"]
            self.started.set_result(None)
        else:
            self._code = answer["code"]
            self._ended.set()

    def lost(self, why: str) -> None:
        """Takes the end of the server, with which the child was killed."""
        with self._lock:
            if self._code is not None:
                return
            self._code = -signal.SIGKILL
        if not self.started.done():
            self.started.set_exception(RunError(f"the process that runs are forked from ended: {why}"))
        self._ended.set()
