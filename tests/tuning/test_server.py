"""Children that are forked from a process which has imported everything."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from aplot_lightning.errors import RunError
from aplot_lightning.tuning import preloaded, server, tied
from aplot_lightning.tuning.launch import open_launcher
from aplot_lightning.tuning.preloaded import PreloadedLauncher
from tests.processes import living, wait_until

ROOT = Path(__file__).parents[2]
MARK = "APLOT_TEST_MARK"
# in place of a run: a command line that does what its words say, in a server that has imported little
PROGRAM = """
import json, os, signal, subprocess, sys, time
from aplot_lightning import cli
from aplot_lightning.tuning import server

def main(words):
    if words[0] == "tell":
        print(json.dumps({
            "words": words, "arguments": sys.argv, "folder": os.getcwd(), "group": os.getpgid(0) == os.getpid(),
            "one": os.environ.get("APLOT_ONE"), "run_dir": os.environ.get("APLOT_RUN_DIR"), "parent": os.getppid(),
            "program": sys.modules["__main__"].__spec__.name, "wakes": signal.set_wakeup_fd(-1),
            "files": sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else [],
        }))
        print("on stderr", file=sys.stderr)
    elif words[0] == "exit":
        raise SystemExit(json.loads(words[1]))
    elif words[0] == "return":
        return int(words[1])
    elif words[0] == "raise":
        raise ValueError("an error nobody expected")
    elif words[0] == "family":  # leaves a process that ignores SIGTERM
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
        subprocess.Popen([sys.executable, "-c", code])
    elif words[0] == "gentle":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        print("up", flush=True)
        time.sleep(60)
    elif words[0] == "sleep":
        print("up", flush=True)
        time.sleep(60)
    elif words[0] == "threads":
        import torch
        print(torch.get_num_threads())
    return 0

cli.main = main
server.MODULES = {modules}
server.main(sys.argv[1:])
"""


@pytest.fixture
def launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[PreloadedLauncher]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("{modules}", "('torch',)" if "threads_of" in request.node.name else "()"))
    monkeypatch.setattr(preloaded, "PROGRAM", (sys.executable, str(program)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(MARK, str(tmp_path))
    with PreloadedLauncher() as opened:
        yield opened
    wait_until(lambda: set(living({MARK: str(tmp_path)})) <= {os.getpid()}, 1)


def test_a_child_is_as_a_process_of_its_own_would_be(
    launcher: PreloadedLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher.start(["return", "0"], log=tmp_path / "first").wait(60)  # the server is there
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("APLOT_RUN_DIR", "of another")
    child = launcher.start(["tell", "a b", "{}"], log=tmp_path / "logs" / "log", environment={"APLOT_ONE": "1"})
    assert child.wait(60) == 0
    told, other = child.log.read_text().splitlines()
    assert other == "on stderr"
    values = json.loads(told)
    arguments = values.pop("arguments")
    assert Path(arguments[0]) == ROOT / "aplot_lightning" / "__main__.py"
    assert arguments[1:] == values.pop("words") == ["tell", "a b", "{}"]
    assert values.pop("files") == ["0", "1", "2", "3"]  # and the listing's own; not the connection
    assert values.pop("parent") != os.getpid()
    assert values == {
        "folder": str(tmp_path / "elsewhere"),
        "group": True,
        "one": "1",
        "run_dir": None,
        "program": "aplot_lightning.__main__",
        "wakes": -1,
    }


ENDS = [
    (["return", "7"], 7, ""),
    (["exit", "0"], 0, ""),
    (["exit", "null"], 0, ""),
    (["exit", '"why"'], 1, "why\n"),
    (["exit", "2"], 2, ""),
    (["raise"], 1, "ValueError: an error nobody expected\n"),
]


def test_the_exit_code_comes_back(launcher: PreloadedLauncher, tmp_path: Path) -> None:
    for place, (words, code, said) in enumerate(ENDS):
        child = launcher.start(words, log=tmp_path / f"{place}.log")
        assert child.wait(60) == code, words
        assert child.poll() == child.stop() == code
        text = child.log.read_text()
        assert text.endswith(said)
        assert bool(text) == bool(said)


def test_several_run_at_once_and_each_is_stopped_alone(launcher: PreloadedLauncher, tmp_path: Path) -> None:
    children = [launcher.start(["gentle"], log=tmp_path / str(number)) for number in range(3)]
    for child in children:
        wait_until(lambda child=child: "up" in child.log.read_text())  # type: ignore[misc]
    with pytest.raises(TimeoutError):
        children[0].wait(0.05)
    assert children[1].stop() == 143
    assert [child.poll() for child in children] == [None, 143, None]
    stubborn = launcher.start(["sleep"], log=tmp_path / "sleep")
    os.kill(stubborn.pid, signal.SIGKILL)
    assert stubborn.wait(60) == -signal.SIGKILL


def test_threads_may_start_children_side_by_side(launcher: PreloadedLauncher, tmp_path: Path) -> None:
    codes: dict[int, int] = {}

    def work(number: int) -> None:
        codes[number] = launcher.start(["return", str(number)], log=tmp_path / str(number)).wait(60)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {number: number for number in range(8)}


def test_what_a_child_leaves_ends_with_it(launcher: PreloadedLauncher, tmp_path: Path) -> None:
    before = set(living({MARK: str(tmp_path)}))
    assert launcher.start(["family"], log=tmp_path / "log").wait(60) == 0
    wait_until(lambda: len(set(living({MARK: str(tmp_path)})) - before) <= 1, 1)  # the server, at most


def test_a_killed_server_takes_its_children_along_and_the_next_child_gets_another(
    launcher: PreloadedLauncher, tmp_path: Path
) -> None:
    child = launcher.start(["sleep"], log=tmp_path / "log")
    assert launcher._server is not None
    os.kill(launcher._server._process.pid, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    wait_until(lambda: tied.identity(child.pid) is None, 1)
    assert launcher.start(["return", "3"], log=tmp_path / "log").wait(60) == 3


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "raise SystemExit('no such module')"
    monkeypatch.setattr(preloaded, "PROGRAM", (sys.executable, "-c", code))
    with PreloadedLauncher() as opened, pytest.raises(RunError, match="are forked from ended: no such module"):
        opened.start(["fit"], log=tmp_path / "log")


def test_a_log_that_cannot_be_written_is_an_error_of_the_start(tmp_path: Path) -> None:
    with PreloadedLauncher() as opened, pytest.raises(IsADirectoryError):
        opened.start(["fit"], log=tmp_path)


def test_the_server_has_one_thread_and_all_that_a_run_imports(tmp_path: Path) -> None:
    """All that is named is there, and a command's threads are the ones that its environment asks for."""
    log = tmp_path / "log"
    with open_launcher(preload=True) as opened:
        assert isinstance(opened, PreloadedLauncher)
        assert opened.start(["--version"], log=log, environment={"OMP_NUM_THREADS": "3"}).wait(120) == 0
        assert log.read_text()[0].isdigit()
        assert opened._server is not None
        assert opened._server._words.read_text() == ""  # no warning of an import
        if sys.platform == "linux":
            assert len(os.listdir(f"/proc/{opened._server._process.pid}/task")) == 1
    assert not opened._server._words.exists()


def test_the_modules_of_the_server_exist() -> None:
    def exists(name: str) -> bool:
        """Without importing what lies above it."""
        top, *inner = name.split(".")
        spec = find_spec(top)
        if spec is None or spec.submodule_search_locations is None:
            return spec is not None and not inner
        paths = [Path(folder, *inner) for folder in spec.submodule_search_locations]
        return any(path.is_dir() or list(path.parent.glob(f"{path.name}.*")) for path in paths)

    extras = {"optuna", "pandas", "psutil", "networkx", "accelerate"}
    assert [name for name in server.MODULES if not exists(name) and name.split(".")[0] not in extras] == []


def test_a_child_computes_with_the_threads_of_its_environment(launcher: PreloadedLauncher, tmp_path: Path) -> None:
    for number in ("1", "3"):
        child = launcher.start(["threads"], log=tmp_path / number, environment={"OMP_NUM_THREADS": number})
        assert child.wait(60) == 0
        assert child.log.read_text().strip() == number
