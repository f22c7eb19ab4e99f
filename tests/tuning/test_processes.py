"""Children of the launcher, with small programs in place of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aplot_lightning.tuning import launch, tied
from aplot_lightning.tuning.launch import PlainLauncher, open_launcher
from tests.processes import living, wait_until

ROOT = Path(__file__).parents[2]
MARK = "APLOT_TEST_MARK"
# a process that starts another, which ignores SIGTERM as a rank stuck in a collective does
FAMILY = """
import signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"])
print("started", flush=True)
"""


def python(code: str) -> PlainLauncher:
    return PlainLauncher([sys.executable, "-c", code])


def test_a_child_says_what_it_says_into_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "0.log"
    with open_launcher() as launcher:
        assert launcher.start(["--version"], log=log).wait(60) == 0
        assert launcher.start(["no-command"], log=log).wait(60) == 2
    first, second = log.read_text().splitlines()  # added, not replaced
    assert first[0].isdigit()
    assert second.startswith("aplot: there is no command 'no-command'")


def test_a_child_has_its_words_folder_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APLOT_ONE", "1")
    monkeypatch.setenv("APLOT_TWO", "2")
    for name in ("APLOT_RUN_DIR", "SLURM_NTASKS", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")  # of a launcher that started this process, not the child
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), *(os.environ.get(n) for n in {}), sys.stdin.read())"
    names = ["APLOT_ONE", "APLOT_TWO", "APLOT_RUN_DIR", "SLURM_NTASKS", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"]
    with python(code.format(names)) as launcher:
        words = ["fit", "--a b", "{'c': 1}"]
        assert launcher.start(words, log=tmp_path / "log", environment={"APLOT_TWO": "3"}).wait(60) == 0
    assert (tmp_path / "log").read_text().strip() == f"{words} {tmp_path} 1 3 None None None None"


def test_a_child_tells_how_it_ended(tmp_path: Path) -> None:
    with python("import os, sys; os.kill(os.getpid(), 9) if sys.argv[1] == 'kill' else sys.exit(7)") as launcher:
        assert launcher.start(["exit"], log=tmp_path / "log").wait(60) == 7
        assert launcher.start(["kill"], log=tmp_path / "log").wait(60) == -signal.SIGKILL
        child = launcher.start(["exit"], log=tmp_path / "log")
        wait_until(lambda: child.poll() is not None)
        assert child.poll() == child.wait() == child.stop() == 7


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with python("import time; time.sleep(60)") as launcher:
        child = launcher.start([], log=tmp_path / "log")
        with pytest.raises(TimeoutError):
            child.wait(0.1)
        assert child.poll() is None
    assert child.poll() == -signal.SIGKILL  # the launcher's end


def test_a_child_that_ends_leaves_nothing_behind(tmp_path: Path) -> None:
    mark = {MARK: str(tmp_path)}
    with python(FAMILY) as launcher:
        child = launcher.start([], log=tmp_path / "log", environment=mark)
        assert child.wait(60) == 0
        wait_until(lambda: not living(mark), 1)


def test_stopping_is_gentle_first_and_reaches_all(tmp_path: Path) -> None:
    mark = {MARK: str(tmp_path)}
    gentle = "import signal, sys; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True)"
    with python(f"{FAMILY}\n{gentle}\ntime.sleep(60)") as launcher:
        child = launcher.start([], log=tmp_path / "log", environment=mark)
        wait_until(lambda: "up" in child.log.read_text())
        assert child.stop() == 143
        wait_until(lambda: not living(mark), 1)
    with python(f"{FAMILY}\nsignal.signal(15, signal.SIG_IGN); print('up', flush=True)\ntime.sleep(60)") as launcher:
        child = launcher.start([], log=tmp_path / "other", environment=mark)
        wait_until(lambda: "up" in child.log.read_text())
        assert child.stop(grace=0.2) == -signal.SIGKILL
        wait_until(lambda: not living(mark), 1)


def test_a_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    """The kernel takes the end of a thread that forked for the death of the parent."""
    children: list[launch.Child] = []
    with python("import time; time.sleep(0.5)") as launcher:
        threads = [
            threading.Thread(target=lambda: children.append(launcher.start([], log=tmp_path / "log"))) for _ in "ab"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [child.wait(60) for child in children] == [0, 0]


TREE = """
import multiprocessing, os, subprocess, sys, time
import aplot_lightning
def sleep(): time.sleep(60)
if len(sys.argv) < 2:
    multiprocessing.get_context("fork").Process(target=sleep).start()
    subprocess.Popen([sys.executable, __file__, "rank"], start_new_session=True)
print("up", flush=True)
sleep()
"""
PARENT = """
import sys, time
from pathlib import Path
from aplot_lightning.tuning.launch import PlainLauncher
child = PlainLauncher([sys.executable, sys.argv[1]]).start([], log=Path(sys.argv[2]))
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
@pytest.mark.parametrize("moment", ["at once", "later"])
def test_nothing_outlives_a_killed_parent(tmp_path: Path, moment: str) -> None:
    """Forked workers and ranks in a session of their own among it."""
    mark = {MARK: str(tmp_path)}
    (tmp_path / "tree.py").write_text(TREE)
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "tree.py"), str(log)],
        env={**os.environ, **mark, "PYTHONPATH": str(ROOT)},
    )
    wait_until(lambda: log.exists() and (moment == "at once" or log.read_text().count("up") == 2))
    assert len(living(mark)) >= (1 if moment == "at once" else 4)
    parent.kill()
    wait_until(lambda: not living(mark), 1)
    parent.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
def test_a_child_whose_parent_is_gone_before_it_can_look_ends_at_once() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    gone = tied.identity(ended.pid)
    assert gone is not None
    ended.wait()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), tied.VARIABLE: gone}
    for command in (["-m", "aplot_lightning", "--version"], [tied.__file__, "echo", "here"]):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True)
        assert (done.returncode, done.stdout) == (tied.GONE, b"")


def test_an_identity_is_of_a_living_process(tmp_path: Path) -> None:
    own = tied.identity(os.getpid())
    assert own is not None
    assert own.split()[0] == str(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(0.3)
    wait_until(lambda: tied.identity(process.pid) is None)  # a zombie is dead
    process.wait()


def test_the_word_for_ties_is_the_same_in_the_package() -> None:
    import aplot_lightning

    assert aplot_lightning.__file__ is not None
    assert f'"{tied.VARIABLE}" in os.environ' in Path(aplot_lightning.__file__).read_text()
