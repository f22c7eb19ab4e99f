"""report.md of a study: the chosen config, its figures on sets that selected nothing, and the trials."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.evaluation.report.rendering import render
from aplot_lightning.evaluation.report.tables import Table, duration, escape
from aplot_lightning.files import write_text
from aplot_lightning.tuning.storage import file_of, without_password
from aplot_lightning.tuning.study import StudyConfig
from aplot_lightning.tuning.study_plots import complete_trials, draw_study, short_names, write_hyperparameters
from aplot_lightning.tuning.trial import shortened
from aplot_lightning.tuning.trial_queue import FAILURE

if TYPE_CHECKING:
    import optuna

BEST_TRIALS = 5
FAILED_TRIALS = 10  # listed; the others are counted
PLOTS, HYPERPARAMETERS = "plots", "hparams"
PACKAGES = ("aplot-lightning", "optuna", "torch", "lightning", "transformers")


def write_study_report(config: StudyConfig, study: optuna.Study, best: Path, confirmation: Sequence[str]) -> Path:
    """Writes report.md into the study's directory, with its plots and its TensorBoard page beside it.

    Args:
        config: of the study.
        study: with at least one complete trial.
        best: the chosen config's file.
        confirmation: paragraphs of Markdown on the retraining with fresh seeds: first the sentences, then tables.

    Returns:
        The path of report.md.
    """
    folder = config.folder
    plots = draw_study(study, config.monitor, folder / PLOTS)
    write_hyperparameters(study, config.monitor, folder / HYPERPARAMETERS)
    failed = _failed(study)
    page = render(
        "study",
        name=config.study,
        facts=_facts(config, study, best),
        confirmation=confirmation,
        best=best_trials(config, study),
        counts=trial_counts(study),
        failed=Table(failed.header, failed.rows[:FAILED_TRIALS], left=2),
        more_failed=max(0, len(failed.rows) - FAILED_TRIALS),
        trials=shown_path(folder / "trials"),
        plots=plots.values(),
        hyperparameters=shown_path(folder / HYPERPARAMETERS),
        dashboard=dashboard_storage(config.location),
    )
    path = folder / "report.md"
    write_text(path, page)
    return path


def ranked(config: StudyConfig, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The complete trials, best first; of equal ones the earlier first, as Optuna's own choice is."""
    sign = 1 if config.direction == "minimize" else -1
    return sorted(complete_trials(study), key=lambda trial: (sign * _value(trial), trial.number))


def _value(trial: optuna.trial.FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _facts(config: StudyConfig, study: optuna.Study, best: Path) -> Table:
    chosen = ranked(config, study)[0]
    over = f", mean of {config.seeds} seeds" if config.seeds > 1 else ""
    rows = {
        "searched": ", ".join(config.search_space.parameters),
        "over": ", ".join(shown_path(path) for path in config.configs),
        "chosen by": f"{config.monitor}{over} ({'lower' if config.direction == 'minimize' else 'higher'} is better)",
        "chosen": f"trial {chosen.number}, {config.monitor} {_value(chosen):.4f}; as a config: {shown_path(best)}",
        "trials": trial_counts(study),
        "time": _time(study),
        "sampler, pruner": f"{config.sampler} (seed {config.sampler_seed}), {config.pruner}",
        "storage": without_password(config.location),
        "machine": f"{platform.node()}, {os.cpu_count()} cores, {_device()}, {platform.platform()}",
        "versions": f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }
    return Table(["", ""], [[name, value] for name, value in rows.items()], left=2)


def shown_path(path: str | Path) -> str:
    """A path, relative to the working directory if it is below it."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def trial_counts(study: optuna.Study) -> str:
    """The number of trials in each state; trials whose process ended, and which were tried again, are counted apart."""
    ends = [_end(trial) for trial in study.get_trials(deepcopy=False)]
    always = ("complete", "pruned", "failed")
    rest = [end for end in dict.fromkeys(ends) if end not in always]
    return ", ".join(f"{ends.count(end)} {end}" for end in (*always, *rest))


def _end(trial: optuna.trial.FrozenTrial) -> str:
    state = trial.state.name.lower()
    if state != "fail":
        return state
    return "failed" if FAILURE in trial.user_attrs else "cut off and tried again"


def _time(study: optuna.Study) -> str:
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.datetime_start and trial.datetime_complete]
    begun = min(trial.datetime_start for trial in trials if trial.datetime_start)
    ended = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    spent = sum(trial.duration.total_seconds() for trial in trials if trial.duration)
    return (
        f"{begun:%Y-%m-%d %H:%M} to {ended:%Y-%m-%d %H:%M}, {duration((ended - begun).total_seconds())}; "
        f"{duration(spent)} in trials, {duration(spent / len(trials))} each"
    )


def best_trials(config: StudyConfig, study: optuna.Study) -> Table:
    """A table of the best trials with their parameters."""
    trials = ranked(config, study)[:BEST_TRIALS]
    parameters = list(dict.fromkeys(name for trial in trials for name in trial.params))
    names = short_names(parameters)
    header = ["trial", config.monitor, *(names[name] for name in parameters)]
    rows = [
        [str(trial.number), f"{_value(trial):.4f}", *(_parameter(trial.params, name) for name in parameters)]
        for trial in trials
    ]
    return Table(header, rows)


def _parameter(parameters: Mapping[str, Any], name: str) -> str:
    if name not in parameters:
        return "-"
    value = parameters[name]
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _failed(study: optuna.Study) -> Table:
    """The trials that failed, with their reasons."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if FAILURE in trial.user_attrs]
    rows = [[str(trial.number), shortened(str(trial.user_attrs[FAILURE]))] for trial in trials]
    return Table(["failed trial", "reason"], rows, left=2)


def dashboard_storage(location: str) -> str:
    """The storage as optuna-dashboard takes it: a database URL without the password, or a journal's path."""
    path = file_of(location)
    return str(path) if path is not None and location.startswith("journal:") else without_password(location)
