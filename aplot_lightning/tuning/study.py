"""A study as its YAML file tells it: what is searched, over which base config, by which metric, and where it is kept.

study: cost_weights
configs: [../conf/quickstart.yaml, ../conf/objective/aplot.yaml]
monitor: validation/accuracy
trials: 40
space:
  model.learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.monitor import check_monitor, direction
from aplot_lightning.tuning.space import SearchSpace
from aplot_lightning.tuning.storage import check_location, check_pruner

TRIALS = 40  # where the file does not say, and there is no grid


@dataclass
class Baseline:
    """What the tuned config is compared with.

    Args:
        configs: files of fit, after the study's own configs.
        values: parameters of the space by name, over these configs, such as factor 0 for Bradley–Terry; parameters that
            are not named have the configs' values.
    """

    configs: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Confirm:
    """What follows the trials: the chosen config and the baselines, retrained with fresh seeds.

    Args:
        seeds: runs of each; 0 for none.
    """

    seeds: int = 5


@dataclass
class StudyConfig:
    """What a study's YAML file holds; every path in it is relative to the working directory or to that file.

    Args:
        study: name in the storage, and of the directory.
        configs: files of fit that each trial starts from, in the order of fit's --config.
        space: what is searched; see tuning/space.py.
        directory: of the study [runs/STUDY].
        overrides: any keys of fit, the same for all trials.
        monitor: a trial's value: metric of `validation` or of a set in data.ood_validation, best over its validations.
        trials: complete and pruned ones, baselines among them [40; every point of a grid].
        seeds: runs that a trial's value is averaged over; pruning looks at the first.
        first_seed: seed_everything of a trial's first run; the others count on.
        sampler: what proposes values.
        sampler_seed: with it and the history, a trial's values are fixed.
        pruner: what stops trials early: median, hyperband, none, or a class path of Optuna's with init_args.
        storage: a database URL (sqlite:///, postgresql://) or journal:PATH [DIRECTORY/study.db by SQLite].
        workers: trials at a time.
        devices: CUDA devices of each worker, as [0, 1] or [[0, 1], [2, 3]] [all that there are, spread evenly].
        preload: children start from a process that has imported everything [for runs on one device].
        baselines: by name; those that are points of the space are tried first.
        confirm: what follows the trials.
    """

    study: str
    configs: list[str]
    space: dict[str, Any]
    directory: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    monitor: str = "validation/accuracy"
    trials: int | None = None
    seeds: int = 1
    first_seed: int = 0
    sampler: Literal["tpe", "random", "grid", "gp"] = "tpe"
    sampler_seed: int = 0
    pruner: str | dict[str, Any] = "median"
    storage: str | None = None
    workers: int = 1
    devices: list[Any] | None = None
    preload: bool | None = None
    baselines: dict[str, Baseline] = field(default_factory=dict)
    confirm: Confirm | None = field(default_factory=Confirm)

    @property
    def folder(self) -> Path:
        """The study's directory."""
        return Path(self.directory) if self.directory else Path("runs", self.study)

    @property
    def location(self) -> str:
        """Where the study is kept: a database URL or journal:PATH, absolute where it is a file."""
        if self.storage is None:
            return f"sqlite:///{self.folder.absolute() / 'study.db'}"
        for start in ("journal:", "sqlite:///"):
            if self.storage.startswith(start):
                return start + str(Path(self.storage.removeprefix(start)).absolute())
        return self.storage

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return direction(self.monitor)

    @cached_property
    def search_space(self) -> SearchSpace:
        return SearchSpace.parse(self.space)

    @property
    def seed_list(self) -> list[int]:
        """seed_everything of each run of a trial."""
        return [self.first_seed + k for k in range(self.seeds)]

    def identity(self) -> dict[str, Any]:
        """What makes two studies' values comparable."""
        kept = ("space", "monitor", "seeds", "first_seed", "overrides")
        return {name: value for name, value in asdict(self).items() if name in kept} | {
            "grid": self.sampler == "grid",
        }


def read_study(path: str | Path, options: Mapping[str, Any] | None = None) -> StudyConfig:
    """Reads a study's YAML file, and checks all of it that can be checked without a run.

    Args:
        path: of the file.
        options: top-level keys over the file's own, None for those that are not given.

    Raises:
        UserError: an unknown key, a wrong type or value, a space that is none, a test set that would select.
    """
    import yaml
    from jsonargparse import ArgumentError, ArgumentParser

    from aplot_lightning.argument_errors import one_line

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config: {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"--config: {path}{f':{mark.line + 1}' if mark else ''}: no YAML: {_first(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config: {path} holds no keys: write a study as in studies/cost_weights.yaml")
    known = [each.name for each in fields(StudyConfig)]
    unknown = next((str(key) for key in content if key not in known), None)
    if unknown is not None:
        raise UserError(f"{path}: Option {unknown!r} is not accepted, only {', '.join(known)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(StudyConfig)
    content |= {name: value for name, value in (options or {}).items() if value is not None}
    try:
        values = parser.instantiate(parser.parse_object(content))
    except ArgumentError as error:
        raise UserError(f"{path}: {one_line(str(error))}") from error
    config = StudyConfig(**values.as_dict())
    _resolve(config, path)
    try:
        _check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def _first(error: Exception) -> str:
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)


def _resolve(config: StudyConfig, path: Path) -> None:
    """Makes the configs' paths absolute: relative to the working directory, or else to the study's file."""
    for key, paths in {"configs": config.configs, **_baseline_configs(config)}.items():
        for place, name in enumerate(paths):
            found = next((p for p in (Path(name), path.parent / name) if p.is_file()), None)
            if found is None:
                raise UserError(f"{path}: {key}: there is no file {name}, neither here nor beside {path}")
            paths[place] = str(found.resolve())


def _baseline_configs(config: StudyConfig) -> dict[str, list[str]]:
    return {f"baselines.{name}.configs": baseline.configs for name, baseline in config.baselines.items()}


def _check(config: StudyConfig) -> None:
    least = {"trials": 1, "seeds": 1, "workers": 1}
    for key, low in least.items():
        value = getattr(config, key)
        if value is not None and value < low:
            raise UserError(f"{key}: {value} is less than {low}")
    if not config.study or "/" in config.study or config.study.startswith("."):
        raise UserError(f"study: {config.study!r} is no name for a folder")
    if not config.configs:
        raise UserError("configs: name at least one file of fit, such as conf/quickstart.yaml")
    if config.confirm is not None and config.confirm.seeds < 0:
        raise UserError(f"confirm.seeds: {config.confirm.seeds} is less than 0")
    check_monitor(config.monitor)
    check_location(config.location)
    _check_keys(config)
    _check_devices(config.devices)
    if config.sampler == "grid":
        config.search_space.check_grid()
    check_pruner(config.pruner)
    for name, baseline in config.baselines.items():
        config.search_space.check_names(baseline.values, f"baselines.{name}.values")


def _check_keys(config: StudyConfig) -> None:
    """Keys that the study itself sets in every run."""
    taken = {"monitor": "monitor", "run_dir": "directory", "config": "configs", "seed_everything": "first_seed"}
    searched = config.search_space.keys
    for where, keys in (("overrides", config.overrides), ("space", searched)):
        for key in keys:
            if key in taken:
                raise UserError(f"{where}: {key} follows from the study's own key {taken[key]}; leave it out")
    both = sorted(set(config.overrides) & set(searched))
    if both:
        raise UserError(f"overrides: {both[0]} is searched in the space too; leave it out of one of them")


def _check_devices(devices: Sequence[Any] | None) -> None:
    for entry in devices or []:
        each = entry if isinstance(entry, list) else [entry]
        if not each or not all(isinstance(device, int) and device >= 0 for device in each):
            raise UserError(f"devices: {entry!r} is no CUDA device; write [0, 1], or [[0, 1], [2, 3]] for two a trial")
    if devices == []:
        raise UserError("devices: the list is empty; leave it out for all devices that there are")
