"""The cells of a comparison: objectives x seeds, and where they are asked for x backbones x label noise x fractions.

A comparison's YAML:

    comparison: objectives              # its name; the file's by default
    directory: null                     # runs/<comparison> by default
    configs: [../conf/quickstart.yaml]  # as for `fit --config`, from this file's folder, else from where one is
    overrides: {trainer.max_epochs: 3}  # any keys of `fit`
    objectives: {bt: ../conf/objective/bt.yaml, aplot: ...}  # name: file, or a list of files; the first is the baseline
    seeds: [0, 1, 2]
    backbones: null                     # {name: folder or hub name}, or {name: {model.backbone: ..., other keys}}
    label_noise: [0.0]
    train_fraction: [1.0]
    workers: 1

Which comparisons a fraction keeps and whose labels noise swaps follows from the seed: others for each seed, so that
the spread between seeds has it in it, and the same for all objectives of a seed, which are compared in pairs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.yaml_files import flat, read_yaml

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
RESERVED = re.compile(r"(seed|noise|fraction)[\d.e+-]+|plots|tables|checkpoints")
BACKBONE = "model.backbone"
OWN = {  # keys of `fit` that a cell sets, and what sets them
    "seed_everything": "`seeds`",
    "run_dir": "`directory`",
    "overwrite": "compare itself",
    "ckpt_path": "compare itself",
    "config": "`configs`",
    "data.watch_test_sets": "compare itself (test sets are evaluated once, at the end)",
    "data.label_noise": "`label_noise`",
    "data.train_fraction": "`train_fraction`",
}


@dataclass(frozen=True)
class Setting:
    """What is alike in the runs of one table.

    Attributes:
        backbone: its name; None where there is only the configs' own.
        label_noise: share of the training pairs that are swapped.
        train_fraction: share of the training comparisons that are trained on.
    """

    backbone: str | None = None
    label_noise: float = 0.0
    train_fraction: float = 1.0

    @property
    def parts(self) -> list[str]:
        """Folders, and words of a title. An axis at its plain value has none, so that one more value moves nothing."""
        noise = [f"noise{self.label_noise:g}"] if self.label_noise else []
        fraction = [f"fraction{self.train_fraction:g}"] if self.train_fraction != 1 else []
        return [*([self.backbone] if self.backbone else []), *noise, *fraction]


@dataclass(frozen=True)
class Cell:
    """One run of `fit`.

    Attributes:
        setting: its place on the axes beside objective and seed.
        objective: the objective's name.
        seed: `seed_everything`.
        run_dir: the run directory.
        configs: files for `--config`, in order.
        overrides: keys of `fit` and their values, beside seed and run directory.
    """

    setting: Setting
    objective: str
    seed: int
    run_dir: Path
    configs: tuple[Path, ...]
    overrides: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return " ".join([*self.setting.parts, self.objective, f"seed {self.seed}"])


@dataclass(frozen=True)
class Grid:
    """A comparison as its YAML says it.

    Attributes:
        files: that it was read from.
        comparison: its name.
        directory: the folder of everything that it writes.
        configs: files for `--config`, before the objective's.
        overrides: keys of `fit` and their values, for every run.
        objectives: name -> files for `--config`; the first is the baseline.
        seeds: of the runs.
        backbones: name -> keys of `fit`; one None where there is only the configs' own.
        label_noise: the axis.
        train_fraction: the axis.
        workers: runs at once.
    """

    files: tuple[Path, ...]
    comparison: str
    directory: Path
    configs: tuple[Path, ...]
    overrides: dict[str, Any]
    objectives: dict[str, tuple[Path, ...]]
    seeds: tuple[int, ...]
    backbones: dict[str | None, dict[str, Any]]
    label_noise: tuple[float, ...]
    train_fraction: tuple[float, ...]
    workers: int

    def settings(self) -> list[Setting]:
        """Every combination of the axes beside objectives and seeds."""
        return [
            Setting(backbone, noise, fraction)
            for backbone in self.backbones
            for noise in self.label_noise
            for fraction in self.train_fraction
        ]

    def cells(self) -> list[Cell]:
        """All runs, in the order in which they are started: all objectives of a seed before the next seed."""
        return [
            self._cell(setting, objective, seed)
            for setting in self.settings()
            for seed in self.seeds
            for objective in self.objectives
        ]

    def _cell(self, setting: Setting, objective: str, seed: int) -> Cell:
        overrides = {**self.overrides, **self.backbones[setting.backbone]}
        if setting.label_noise:
            overrides["data.label_noise"] = setting.label_noise
        if setting.train_fraction != 1:
            overrides["data.train_fraction"] = setting.train_fraction
        folder = self.directory.joinpath(*setting.parts, objective, f"seed{seed}")
        return Cell(setting, objective, seed, folder, (*self.configs, *self.objectives[objective]), overrides)


KEYS = tuple(name for name in Grid.__dataclass_fields__ if name != "files")


def read_grid(files: Sequence[Path], options: Mapping[str, Any]) -> Grid:
    """A comparison from its YAML files, later ones over earlier ones, and options over all of them.

    Args:
        files: one or more.
        options: dotted keys, such as ``workers`` or ``overrides.data.train``.

    Raises:
        UserError: a file that there is not or that is no YAML, an unknown key, or a value that is of no use.
    """
    content: dict[str, Any] = {}
    for path in files:
        read = read_yaml(path, "--config")
        _check_keys(read, str(path))
        content |= {**read, **_joined(content, read)}
    _check_keys({key.partition(".")[0]: value for key, value in options.items()}, "the command line")
    for key, value in options.items():
        name, _, rest = key.partition(".")
        content[name] = _changed(name, content.get(name), rest, value) if rest else value
    return _Reader(files, content).grid()


def _changed(name: str, before: Any, key: str, value: Any) -> dict[str, Any]:
    """A mapping of the comparison with one entry changed. Raises UserError where the key holds none."""
    if name not in ("overrides", "objectives", "backbones") or not isinstance(before or {}, Mapping):
        raise UserError(f"the command line: {name} has no key {key!r}; give --{name} as a whole")
    if name == "overrides":
        return {**flat(before or {}), key: value}
    own = next((own for own in before or {} if key.startswith(f"{own}.")), None)
    if name == "backbones" and own is not None:
        key, value = own, {**_backbone(before[own]), key.removeprefix(f"{own}."): value}
    elif name == "backbones" and key in (before or {}):
        value = {**_backbone(before[key]), **_backbone(value)}  # the other keys that it needs stay
    return {**(before or {}), key: value}


def _backbone(value: Any) -> dict[str, Any]:
    """The keys of `fit` that a backbone stands for."""
    return flat(value) if isinstance(value, Mapping) else {BACKBONE: value}


def _joined(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a second file adds to instead of replacing them."""
    return {
        name: {**flat(before[name]), **flat(after[name])}
        for name in ("overrides",)
        if isinstance(before.get(name), Mapping) and isinstance(after.get(name), Mapping)
    }


def _check_keys(content: Mapping[Any, Any], where: str) -> None:
    for key in content:
        if key not in KEYS:
            raise UserError(f"{where}: {key!r} is no key of a comparison; its keys are {', '.join(KEYS)}")


class _Reader:
    """Takes a comparison's content apart and says of each key what is wrong with it."""

    def __init__(self, files: Sequence[Path], content: Mapping[str, Any]) -> None:
        self.files = files
        self.content = {key: value for key, value in content.items() if value is not None}
        self.where = ", ".join(map(str, files))

    def fault(self, key: str, message: str) -> UserError:
        return UserError(f"{self.where}: {key}: {message}")

    def grid(self) -> Grid:
        name = str(self.content.get("comparison", self.files[-1].stem))
        self._check_name("comparison", name)
        directory = Path(str(self.content.get("directory", Path("runs", name)))).expanduser()
        configs = self._files("configs", self.content.get("configs", []))
        return Grid(
            files=tuple(self.files),
            comparison=name,
            directory=directory,
            configs=tuple(configs),
            overrides=self._overrides("overrides", self.content.get("overrides", {})),
            objectives=self._objectives(configs),
            seeds=self._seeds(),
            backbones=self._backbones(),
            label_noise=self._shares("label_noise", 0.0, "from 0 to below 1", lambda share: 0 <= share < 1),
            train_fraction=self._shares("train_fraction", 1.0, "above 0, at most 1", lambda share: 0 < share <= 1),
            workers=self._workers(),
        )

    def _check_name(self, key: str, name: Any) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise self.fault(key, f"{name!r} cannot name a folder; use letters, digits, _, - and .")
        if RESERVED.fullmatch(name):
            raise self.fault(key, f"{name!r} is the name of a folder of compare's own; take another")

    def _files(self, key: str, value: Any) -> list[Path]:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise self.fault(key, "name one or more config files of `fit`, such as ../conf/quickstart.yaml")
        return [self._file(key, name) for name in names]

    def _file(self, key: str, name: str) -> Path:
        """A config file, beside the comparison's file or where one is."""
        path = Path(name).expanduser()
        folders = [file.parent for file in reversed(self.files)]
        for found in (folder / path for folder in (*folders, Path())):
            if found.is_file():
                return Path(os.path.normpath(found))
        looked = " and ".join(dict.fromkeys(str(folder.absolute()) for folder in (*folders, Path())))
        raise self.fault(key, f"there is no file {name} (looked from {looked})")

    def _objectives(self, configs: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
        value = self.content.get("objectives")
        if isinstance(value, list):
            stems = [Path(str(item)).stem for item in value]
            twice = next((stem for stem in stems if stems.count(stem) > 1), None)
            if twice is not None:
                raise self.fault("objectives", f"{twice!r} stands there twice; leave one out, or give them names")
            value = dict(zip(stems, value, strict=True))
        if not isinstance(value, Mapping) or not value:
            raise self.fault("objectives", "name one or more, such as {bt: ../conf/objective/bt.yaml}")
        for name in value:
            self._check_name("objectives", name)
        return {name: tuple(self._objective(name, value[name], configs)) for name in value}

    def _objective(self, name: str, value: Any, configs: Sequence[Path]) -> list[Path]:
        if isinstance(value, str) and NAME.fullmatch(value) and not value.endswith((".yaml", ".yml")):
            shipped = configs[0].parent / "objective" / f"{value}.yaml"
            if shipped.is_file():
                return [shipped]
        return self._files(f"objectives.{name}", value)

    def _seeds(self) -> tuple[int, ...]:
        seeds = self.content.get("seeds", [])
        if not isinstance(seeds, list) or not seeds:
            raise self.fault("seeds", "name one or more, such as [0, 1, 2]")
        for seed in seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 or seeds.count(seed) > 1:
                raise self.fault("seeds", f"{seed!r} is of no use; different whole numbers from 0 on are meant")
        return tuple(seeds)

    def _backbones(self) -> dict[str | None, dict[str, Any]]:
        value = self.content.get("backbones")
        if value is None:
            return {None: {}}
        if not isinstance(value, Mapping) or not value:
            raise self.fault("backbones", "{name: folder or hub name} is meant; leave it out for the configs' own")
        backbones: dict[str | None, dict[str, Any]] = {}
        for name, given in value.items():
            self._check_name("backbones", name)
            keys = self._overrides(f"backbones.{name}", _backbone(given))
            if not isinstance(keys.get(BACKBONE), str):
                raise self.fault(f"backbones.{name}", f"it has no {BACKBONE}: a folder or a hub name")
            backbones[name] = keys
        return backbones

    def _overrides(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self.fault(key, "keys of `fit` and their values are meant, such as {trainer.max_epochs: 3}")
        keys = flat(value)
        for name in keys:
            if name in OWN:
                raise self.fault(key, f"{name} is set by {OWN[name]}; leave it out here")
        return keys

    def _shares(self, key: str, plain: float, meant: str, fits: Any) -> tuple[float, ...]:
        values = self.content.get(key, [plain])
        values = values if isinstance(values, list) else [values]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
                raise self.fault(key, f"{value!r} is of no use; shares {meant} are meant, such as [{plain:g}, 0.25]")
        if not values or len({f"{value:g}" for value in values}) < len(values):
            raise self.fault(key, "it is empty, or a value stands there twice")
        return tuple(map(float, values))

    def _workers(self) -> int:
        workers = self.content.get("workers", 1)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise self.fault("workers", f"{workers!r} is of no use; how many runs go on at once is meant")
        return workers
