"""Processes that share a study whose runs are tiny programs, killed again and again: python crew.py STUDY KILLS.

Imports once and forks, so that a process that gives out trials is there at once. Says as JSON how many were killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

PROCESSES = 2
TRIAL = Path(__file__).with_name("tiny_trial.py")


def work(file: str) -> int:
    """Runs the study's trials until none is left, as `tune` does."""
    from aplot_lightning.tuning.processes import Launcher
    from aplot_lightning.tuning.study import read_study
    from aplot_lightning.tuning.study_runner import StudyRunner
    from aplot_lightning.tuning.trial import TrialRuns
    from aplot_lightning.tuning.trial_queue import TrialQueue

    config = read_study(file)
    with Launcher(program=[sys.executable, "-S", str(TRIAL)]) as launcher:
        StudyRunner(TrialQueue(config, {}), TrialRuns(config, {}), say).run(launcher)
    return 0


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def forked(file: str) -> int:
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        code = work(file)
    finally:
        os._exit(code)


def children_of(process: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def main(file: str, kills: int) -> int:
    """Kills as often; returns how many of them hit a run and not the process that started it."""
    chance = random.Random(11)
    alive = {forked(file) for _ in range(PROCESSES)}
    runs = killed = 0
    while alive:
        if killed < kills:
            time.sleep(chance.uniform(0.02, 0.3))
            victim = chance.choice(sorted(alive))
            children = children_of(victim)
            if children and chance.random() < 0.4:
                os.kill(chance.choice(children), signal.SIGKILL)
                runs += 1
            else:
                os.kill(victim, signal.SIGKILL)
            killed += 1
        process, status = os.waitpid(-1, os.WNOHANG if killed < kills else 0)
        if process in alive:
            alive.discard(process)
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGKILL:
                alive.add(forked(file))
            elif code != 0:
                raise SystemExit(f"a process ended with {code}")
            elif killed < kills and not alive:
                raise SystemExit(f"the study ended after {killed} kills")
    return runs


if __name__ == "__main__":
    import optuna
    import sqlalchemy  # noqa: F401

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = main(sys.argv[1], int(sys.argv[2]))
    sys.stdout.write(f"{json.dumps(found)}\n")
