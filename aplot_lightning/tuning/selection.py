"""What follows a study's trials: the chosen config, its confirmation with fresh seeds, and the report.

    finish(config, study) -> runs/STUDY/report.md, beside best.yaml and confirm/NAME/seedK/

Trials see only the sets that select. The test sets are evaluated here, once, when everything is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from aplot_lightning.errors import RunError
from aplot_lightning.files import locked
from aplot_lightning.tuning.config_keys import look_up, nested
from aplot_lightning.tuning.confirmation import retrain
from aplot_lightning.tuning.findings import Confirmed, findings
from aplot_lightning.tuning.fit_config import config_arguments, fit_configs, option_arguments, write_fit_config
from aplot_lightning.tuning.study import Baseline, StudyConfig
from aplot_lightning.tuning.study_report import ranked, trial_counts, write_study_report

if TYPE_CHECKING:
    import optuna

BEST, CONFIRM = "best.yaml", "confirm"
NOT_CONFIRMED = (
    "Nothing was confirmed (`confirm.seeds` is 0): the best trial's value is the luckiest of many on the very pairs "
    "that chose it, so it is optimistic, and no test set was evaluated. With `confirm: {seeds: 5}` the same command "
    "retrains the chosen config and the baselines with fresh seeds."
)


def finish(config: StudyConfig, study: optuna.Study, *, workers: int | None = None) -> Path:
    """Writes best.yaml, retrains the chosen config and every baseline with fresh seeds, and writes report.md.

    Called again, it resumes: runs that are done are kept. Of several processes that share the study's folder, one does
    this while the others wait for it.

    Args:
        config: of the study.
        study: its trials.
        workers: runs at a time; the study's own number by default.

    Returns:
        The path of report.md.

    Raises:
        RunError: no trial has a value, or a run of the confirmation failed.
    """
    with locked(config.folder / "finish.lock"):
        trials = ranked(config, study)
        if not trials:
            raise RunError(
                f"study {config.study}: none of its trials has a value ({trial_counts(study)}), so there is nothing to "
                f"choose; their logs are in {config.folder}"
            )
        best = write_best(config, study, trials[0])
        if config.confirm is None or config.confirm.seeds < 1:
            return write_study_report(config, study, best, [NOT_CONFIRMED])
        baselines, chosen = write_baselines(config), chosen_name(config)
        twin = next((name for name, path in baselines.items() if _same(path, best)), None)
        groups = baselines if twin else {**baselines, chosen: best}  # what is chosen may be a baseline
        seeds = fresh_seeds(config, study, config.confirm.seeds)
        runs = retrain(
            groups, seeds, config.folder / CONFIRM, workers=workers or config.workers, devices=config.devices
        )
        confirmed = Confirmed({**runs, chosen: runs[twin or chosen]}, seeds, twin)
        return write_study_report(config, study, best, findings(config, study, confirmed))


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same config."""
    return bool(yaml.safe_load(one.read_bytes()) == yaml.safe_load(other.read_bytes()))


def chosen_name(config: StudyConfig) -> str:
    """The name of the chosen config beside the baselines."""
    return next(name for name in ("chosen", "tuned", "chosen_by_the_study") if name not in config.baselines)


def write_best(config: StudyConfig, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> Path:
    """Writes the best trial as one whole config that `fit --config` takes; returns its path.

    Raises:
        RunError: `fit` would read another config from it.
    """
    path = config.folder / BEST
    over = f", mean of {config.seeds} seeds" if config.seeds > 1 else ""
    header = [
        f"The best of study {config.study}: trial {trial.number}, {config.monitor} {trial.value:.4f}{over}.",
        f"Trials: {trial_counts(study)}. Written {date.today().isoformat()}.",
        "That value is optimistic, being the best of many: see report.md for its value with fresh seeds.",
        "",
        f"  python -m aplot_lightning fit --config {path}",
        "",
        *(f"{name}: {value}" for name, value in trial.params.items()),
    ]
    (whole,) = _whole(config, [Baseline(values=trial.params)])
    write_fit_config(path, whole, header)
    return path


def write_baselines(config: StudyConfig) -> dict[str, Path]:
    """Writes every baseline as a whole config; returns the paths by name, in the study's order."""
    paths = {name: config.folder / CONFIRM / f"{name}.yaml" for name in config.baselines}
    for path, whole in zip(paths.values(), _whole(config, list(config.baselines.values())), strict=True):
        write_fit_config(path, whole, [f"Baseline {path.stem} of study {config.study}."])
    return paths


def _whole(config: StudyConfig, points: Sequence[Baseline]) -> list[dict[str, Any]]:
    """What `fit` runs with at points of the space: as in a trial, without its run directory."""
    if not points:
        return []
    space = config.search_space
    fixed = option_arguments(config.overrides)
    starts = [[*config_arguments([*config.configs, *point.configs]), *fixed] for point in points]
    keys = {**config.overrides, "monitor": config.monitor, "seed_everything": config.first_seed}
    with TemporaryDirectory() as folder:
        arguments = []
        for number, (start, base, point) in enumerate(zip(starts, fit_configs(starts), points, strict=True)):
            try:  # values that a baseline leaves out are those of its configs
                values = space.point(point.values, partial(look_up, config=base))
            except (KeyError, ValueError):
                values = point.values
            path = Path(folder, f"{number}.yaml")
            path.write_text(yaml.safe_dump(nested({**keys, **space.overrides(values)}, base), sort_keys=False))
            arguments.append([*start, *config_arguments([path])])
        return list(fit_configs(arguments))


def fresh_seeds(config: StudyConfig, study: optuna.Study, number: int) -> list[int]:
    """The first seeds after the study's own that no trial used."""
    used: set[Any] = set(config.seed_list)
    if "seed_everything" in config.search_space.keys:
        points = [trial.params for trial in ranked(config, study)]
        used |= {config.search_space.overrides(point)["seed_everything"] for point in points}
    return list(islice((seed for seed in count(config.first_seed + config.seeds) if seed not in used), number))
