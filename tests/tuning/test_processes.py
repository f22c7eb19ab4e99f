"""Child processes: their output, environment and end, and that none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aplot_lightning.tuning.processes import Launcher
from tests.processes import living, wait_until

ROOT = Path(__file__).parents[2]
MARK = "APLOT_TEST_MARK"
# a process that starts another one, which ignores SIGTERM as a rank stuck in a collective does
FAMILY = """
import signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"])
print("started", flush=True)
"""


def python(code: str) -> Launcher:
    return Launcher(program=[sys.executable, "-c", code])


@pytest.mark.parametrize("preload", [False, True])
def test_output_is_appended_to_the_log_and_the_exit_code_is_returned(tmp_path: Path, preload: bool) -> None:
    log = tmp_path / "logs" / "0.log"
    with Launcher(preload=preload) as launcher:
        assert launcher.start(["--version"], log=log).ended.result(60) == 0
        assert launcher.start(["no-command"], log=log).ended.result(60) == 2
    first, second = log.read_text().splitlines()
    assert first[0].isdigit()
    assert second.startswith("aplot: there is no command 'no-command'")


def test_a_child_gets_its_arguments_folder_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APLOT_ONE", "1")
    monkeypatch.setenv("APLOT_TWO", "2")
    for name in ("APLOT_RUN_DIR", "SLURM_NTASKS", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")  # from the launcher of this process, not of the child
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), *(os.environ.get(n) for n in {}), sys.stdin.read())"
    names = ["APLOT_ONE", "APLOT_TWO", "APLOT_RUN_DIR", "SLURM_NTASKS", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"]
    arguments = ["fit", "--a b", "{'c': 1}"]
    with python(code.format(names)) as launcher:
        child = launcher.start(arguments, log=tmp_path / "log", environment={"APLOT_TWO": "3"})
        assert child.ended.result(60) == 0
    assert (tmp_path / "log").read_text().strip() == f"{arguments} {tmp_path} 1 3 None None None None"


def test_a_killed_child_has_a_negative_code_and_leaving_the_launcher_kills(tmp_path: Path) -> None:
    with python("import os; os.kill(os.getpid(), 9)") as launcher:
        assert launcher.start([], log=tmp_path / "log").ended.result(60) == -signal.SIGKILL
    with python("import time; time.sleep(60)") as launcher:
        child = launcher.start([], log=tmp_path / "log")
    assert child.ended.result(0) in (-signal.SIGTERM, -signal.SIGKILL)


def test_a_child_that_ends_leaves_nothing_behind(tmp_path: Path) -> None:
    mark = {MARK: str(tmp_path)}
    with python(FAMILY) as launcher:
        assert launcher.start([], log=tmp_path / "log", environment=mark).ended.result(60) == 0
        wait_until(lambda: not living(mark), 1)


def test_stopping_asks_first_and_then_kills_the_group(tmp_path: Path) -> None:
    mark = {MARK: str(tmp_path)}
    asked = "import signal, sys; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True)"
    deaf = "signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    for how, grace, code in ((asked, 30.0, 143), (deaf, 0.2, -signal.SIGKILL)):
        with python(f"{FAMILY}\n{how}\ntime.sleep(60)") as launcher:
            child = launcher.start([], log=tmp_path / str(code), environment=mark)
            wait_until(lambda: "up" in child.log.read_text())  # noqa: B023
            assert child.stop(grace) == code
            wait_until(lambda: not living(mark), 1)


# a command whose rank sleeps: the rank is a process that calls end_with_parent, as every `aplot` process does
TREE = """
import subprocess, sys, time
from aplot_lightning.tuning.processes import end_with_parent
end_with_parent()
if len(sys.argv) < 2:
    subprocess.Popen([sys.executable, __file__, "rank"])
print("up", flush=True)
time.sleep(60)
"""
PARENT = """
import sys, time
from pathlib import Path
from aplot_lightning.tuning.processes import Launcher
child = Launcher(program=[sys.executable, sys.argv[1]]).start([], log=Path(sys.argv[2]))
time.sleep(60)
"""


@pytest.mark.parametrize("victim", ["parent", "parent and child"])
def test_nothing_outlives_a_killed_parent(tmp_path: Path, victim: str) -> None:
    mark = {MARK: str(tmp_path)}
    (tmp_path / "tree.py").write_text(TREE)
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "tree.py"), str(log)],
        env={**os.environ, **mark, "PYTHONPATH": str(ROOT)},
    )
    wait_until(lambda: log.exists() and log.read_text().count("up") == 2)
    family = living(mark)
    assert len(family) == 3
    parent.kill()
    if victim == "parent and child":  # the rank has to look after itself
        os.kill(sorted(family)[1], signal.SIGKILL)
    wait_until(lambda: not living(mark), 10)
    parent.wait()
