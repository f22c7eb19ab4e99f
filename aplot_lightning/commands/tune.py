"""An Optuna study whose trials are runs of fit: aplot tune --config studies/X.yaml [--workers N]"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aplot_lightning.exit_codes import TERMINATED

if TYPE_CHECKING:
    from aplot_lightning.tuning.launch import Launcher
    from aplot_lightning.tuning.slots import Slots
    from aplot_lightning.tuning.study import StudyConfig


def main(
    config: str,
    workers: int | None = None,
    trials: int | None = None,
    storage: str | None = None,
    confirm: bool = True,
) -> None:
    """Searches a space over config keys, then retrains what it found and the baselines with fresh seeds.

    Each trial is a run of fit in a process of its own. The command goes on where it was when it is run again, and
    several of them, on several machines too, share the work where they share the storage: every trial is run once.

    Args:
        config: The study's YAML file, such as studies/cost_weights.yaml.
        workers: Trials at a time on this machine; the file's own number by default.
        trials: Complete and pruned trials, instead of the file's number.
        storage: A database URL (sqlite:///PATH, postgresql://...) or journal:PATH, instead of the file's.
        confirm: False leaves out what follows the trials: the confirmation and the report.
    """
    from aplot_lightning.tuning.study import read_study

    given = {"workers": workers, "trials": trials, "storage": storage}
    study_config = read_study(config, given)

    from aplot_lightning.tuning.launch import open_launcher
    from aplot_lightning.tuning.storage import check_reachable, told_in_one_line
    from aplot_lightning.tuning.workers import Stopped

    check_reachable(study_config.location)
    launcher = open_launcher(preload=study_config.preload is not False)
    try:
        base, launcher = _checked_base(study_config, launcher)
        with told_in_one_line(study_config.location):
            slots = _run_trials(study_config, base, launcher)
        if confirm:
            from aplot_lightning.tuning.selection import finish

            print(f"report: {finish(study_config, slots.study, launcher)}", flush=True)
    except Stopped as stopped:
        _say("stopped; its trials were given back: run the same command again to go on")
        raise (KeyboardInterrupt if stopped.number == signal.SIGINT else SystemExit(TERMINATED)) from None
    finally:
        launcher.close()


def run(arguments: list[str]) -> None:
    """Reads the command line by `main`'s signature; its `--config` is the study's file, not a file of options."""
    from aplot_lightning.tuning.study import read_options

    main(**read_options("tune", main, arguments))


def _checked_base(config: StudyConfig, launcher: Launcher) -> tuple[dict[str, Any], Launcher]:
    """The whole base config after all checks that need `fit`'s parser, and the launcher that suits it."""
    from aplot_lightning.tuning.launch import open_launcher
    from aplot_lightning.tuning.trial import check_monitored_set, check_space, is_single_device, read_base

    base = read_base(config, launcher)
    check_monitored_set(config, base)
    check_space(config, launcher, base)
    if config.preload is None and not is_single_device(base):
        launcher.close()
        launcher = open_launcher()
    return base, launcher


def _run_trials(config: StudyConfig, base: Mapping[str, Any], launcher: Launcher) -> Slots:
    from aplot_lightning.tuning.same_study import check_same_study
    from aplot_lightning.tuning.slots import Slots
    from aplot_lightning.tuning.storage import without_password
    from aplot_lightning.tuning.trial import TrialRuns, baseline_points
    from aplot_lightning.tuning.workers import Workers

    points, notes = baseline_points(config, launcher, base)
    slots = Slots(config, points)
    check_same_study(config, slots.study, base)
    for note in notes:
        _say(note)
    before = slots.progress()
    _say(
        f"study {config.study}: {before.finished} of {len(slots.planned)} trials finished, in "
        f"{without_password(config.location)}"
    )
    start = time.monotonic()
    Workers(slots, TrialRuns(config, base), launcher, _say).run()
    after = slots.progress()
    failed = f", {after.failed} failed" if after.failed else ""
    _say(f"study {config.study}: {after.finished} trials finished{failed}, in {time.monotonic() - start:.0f} s")
    return slots


def _say(line: str) -> None:
    print(line, file=sys.stderr if line.startswith("baseline") else sys.stdout, flush=True)
