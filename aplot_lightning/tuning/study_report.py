"""report.md of a study: what it chose, what that is worth on sets that selected nothing, and how it got there."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.evaluation.report.tables import escape, markdown_table
from aplot_lightning.tuning.storage import file_of, without_password
from aplot_lightning.tuning.study import StudyConfig
from aplot_lightning.tuning.study_plots import complete_trials, draw_study, short_names, write_hyperparameters
from aplot_lightning.tuning.trial import shortened
from aplot_lightning.tuning.trial_queue import FAILURE

if TYPE_CHECKING:
    import optuna

BEST_TRIALS = 5
FAILED_TRIALS = 10  # that are named; the others are counted
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
    sections = [
        f"# Study {escape(config.study)}",
        _header(config, study, best),
        "## What it is worth: fresh seeds, and test sets that selected nothing",
        *confirmation,
        "## The best trials",
        best_trials(config, study),
        "## Trials",
        *_trials(config, study),
        "## How the search went",
        *plots.values(),
        "## Look further",
        _look_further(config),
    ]
    path = folder / "report.md"
    part = path.with_suffix(".md.part")
    part.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def ranked(config: StudyConfig, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The complete trials, best first; of equal ones the earlier first, as Optuna's own choice is."""
    sign = 1 if config.direction == "minimize" else -1
    return sorted(complete_trials(study), key=lambda trial: (sign * _value(trial), trial.number))


def _value(trial: optuna.trial.FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _header(config: StudyConfig, study: optuna.Study, best: Path) -> str:
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
    return markdown_table(["", ""], [[name, escape(value)] for name, value in rows.items()], left=2)


def shown_path(path: str | Path) -> str:
    """A path as it is written from here, where it lies below."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def trial_counts(study: optuna.Study) -> str:
    """How many trials ended how; those that ended with their process, and were tried again, by themselves."""
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


def duration(seconds: float) -> str:
    """Seconds in words: "42 s", "3 min 5 s", "2 h 10 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def best_trials(config: StudyConfig, study: optuna.Study) -> str:
    """A table of the best trials with their parameters."""
    trials = ranked(config, study)[:BEST_TRIALS]
    parameters = list(dict.fromkeys(name for trial in trials for name in trial.params))
    names = short_names(parameters)
    header = ["trial", escape(config.monitor), *(escape(names[name]) for name in parameters)]
    rows = [
        [str(trial.number), f"{_value(trial):.4f}", *(_cell(trial.params, name) for name in parameters)]
        for trial in trials
    ]
    return markdown_table(header, rows)


def _cell(parameters: Mapping[str, Any], name: str) -> str:
    if name not in parameters:
        return "-"
    value = parameters[name]
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _trials(config: StudyConfig, study: optuna.Study) -> list[str]:
    failed = [trial for trial in study.get_trials(deepcopy=False) if FAILURE in trial.user_attrs]
    sections = [f"{trial_counts(study)}."]
    if failed:
        reasons = {trial.number: shortened(str(trial.user_attrs[FAILURE])) for trial in failed[:FAILED_TRIALS]}
        rows = [[str(place), escape(reason)] for place, reason in reasons.items()]
        sections.append(markdown_table(["failed trial", "reason"], rows, left=2))
    if len(failed) > FAILED_TRIALS:
        more = len(failed) - FAILED_TRIALS
        sections.append(f"{more} more failed; their logs are in {escape(shown_path(config.folder / 'trials'))}.")
    return sections


def _look_further(config: StudyConfig) -> str:
    return (
        "Hyperparameters of each trial beside its value, in TensorBoard (HPARAMS):\n\n"
        f"    tensorboard --logdir {shown_path(config.folder / HYPERPARAMETERS)}\n\n"
        "Everything else about the trials, in a browser:\n\n"
        "    pip install optuna-dashboard\n"
        f"    optuna-dashboard {dashboard_storage(config.location)}"
    )


def dashboard_storage(location: str) -> str:
    """What optuna-dashboard takes: a database URL without the password, or a journal's path."""
    path = file_of(location)
    return str(path) if path is not None and location.startswith("journal:") else without_password(location)
