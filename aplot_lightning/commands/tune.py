"""An Optuna study whose trials are runs of fit: aplot tune --config studies/X.yaml [--workers N]"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aplot_lightning.tuning.study import StudyConfig
    from aplot_lightning.tuning.trial_queue import TrialQueue


def main(
    config: str,
    workers: int | None = None,
    trials: int | None = None,
    storage: str | None = None,
    confirm: bool = True,
) -> None:
    """Searches a space over config keys, then retrains what it found and the baselines with fresh seeds.

    Each trial is a run of fit in a process of its own. Run the command again to resume. Several of these commands, on
    several machines too, share the work if they share the storage: every trial is run once.

    Args:
        config: The study's YAML file, such as studies/cost_weights.yaml.
        workers: Trials at a time on this machine; the file's own number by default.
        trials: Complete and pruned trials, instead of the file's number.
        storage: A database URL (sqlite:///PATH, postgresql://...) or journal:PATH, instead of the file's.
        confirm: False skips what follows the trials: the confirmation and the report.
    """
    from aplot_lightning.tuning.scheduler import exit_when_stopped
    from aplot_lightning.tuning.storage import check_reachable, storage_errors
    from aplot_lightning.tuning.study import read_study

    study_config = read_study(config, {"workers": workers, "trials": trials, "storage": storage})
    check_reachable(study_config.location)
    with exit_when_stopped("stopped; its trials are queued again: run the same command to resume"):
        base = _checked_base(study_config)
        with storage_errors(study_config.location):
            queue = _run_trials(study_config, base)
        if confirm:
            from aplot_lightning.tuning.selection import finish

            print(f"report: {finish(study_config, queue.study)}", flush=True)


def _checked_base(config: StudyConfig) -> dict[str, Any]:
    """The whole base config, after all checks that need `fit`'s parser."""
    from aplot_lightning.tuning.trial import check_monitored_set, check_space, read_base

    base = read_base(config)
    check_monitored_set(config, base)
    check_space(config, base)
    return base


def _run_trials(config: StudyConfig, base: Mapping[str, Any]) -> TrialQueue:
    from aplot_lightning.tuning.fit_config import is_single_process
    from aplot_lightning.tuning.processes import Launcher
    from aplot_lightning.tuning.storage import without_password
    from aplot_lightning.tuning.study_runner import StudyRunner
    from aplot_lightning.tuning.trial import TrialRuns, baseline_points
    from aplot_lightning.tuning.trial_queue import TrialQueue, check_same_study

    points, notes = baseline_points(config, base)
    queue = TrialQueue(config, points)
    check_same_study(config, queue.study, base)
    for note in notes:
        print(note, file=sys.stderr, flush=True)
    before = queue.progress()
    print(
        f"study {config.study}: {before.finished} of {len(queue.planned)} trials finished, in "
        f"{without_password(config.location)}",
        flush=True,
    )
    start = time.monotonic()
    preload = is_single_process(base) if config.preload is None else config.preload
    with Launcher(preload=preload) as launcher:
        StudyRunner(queue, TrialRuns(config, base), lambda line: print(line, flush=True)).run(launcher)
    after = queue.progress()
    failed = f", {after.failed} failed" if after.failed else ""
    print(
        f"study {config.study}: {after.finished} trials finished{failed}, in {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return queue
