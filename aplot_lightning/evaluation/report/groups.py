"""Groups of runs: which runs belong together, and which runs of two groups are compared with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.report.runs import Run, read_run, run_labels


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        name: the group's name in tables.
        runs: the key pairs a run with the runs of other groups: its seed, or else its position.
    """

    name: str
    runs: dict[int, Run]


def single_runs(run_dirs: Sequence[str | Path]) -> list[Group]:
    """Each run as a group of its own, named by the last parts of its path.

    Raises:
        UserError: there is no directory, or one is not a finished run.
    """
    if not run_dirs:
        raise UserError("no run is given; name one or more run directories, the folders that `fit` wrote")
    runs = [read_run(run_dir) for run_dir in run_dirs]
    groups: dict[str, Group] = {}
    for label, run in zip(run_labels(runs), runs, strict=True):
        name = label
        while name in groups:  # the same directory twice
            name += " again"
        groups[name] = Group(name, {0: run})
    return list(groups.values())


def read_groups(groups: Mapping[str, Sequence[str | Path]]) -> tuple[list[Group], list[str]]:
    """Reads all runs, and returns notes on how they are paired if not all groups have the same seeds.

    Runs are paired by the `seed_everything` of their configs, so a missing run shifts no others. They are paired by
    position if a group has a seed twice or none, or shares none with the first group.

    Raises:
        UserError: there is no group, a group has no run, or a directory is not a finished run.
    """
    if not groups:
        raise UserError("no group of runs is given; name one or more groups with their run directories")
    if empty := [name for name, paths in groups.items() if not paths]:
        raise UserError(f"{', '.join(empty)}: no run is given; name one or more run directories for each group")
    runs = {name: [read_run(path) for path in paths] for name, paths in groups.items()}
    seeds: dict[str, list[Any]] = {
        name: [run.config.get("seed_everything") for run in each] for name, each in runs.items()
    }
    first = next(iter(seeds))
    notes: list[str] = []
    if all(_distinct(each) and set(each) & set(seeds[first]) for each in seeds.values()):
        for name, each in seeds.items():
            if set(each) != set(seeds[first]):
                shared = len(set(each) & set(seeds[first]))
                notes.append(
                    f"{first} has seeds {_listed(seeds[first])} and {name} {_listed(each)}; "
                    f"their difference is over the {shared} that both have."
                )
        return [Group(name, dict(zip(seeds[name], each, strict=True))) for name, each in runs.items()], notes
    if any(each != seeds[first] for each in seeds.values()):
        notes.append("Groups do not have the same seeds; their runs are paired in the order given.")
    return [Group(name, dict(enumerate(each))) for name, each in runs.items()], notes


def _distinct(seeds: Sequence[Any]) -> bool:
    return all(isinstance(seed, int) for seed in seeds) and len(set(seeds)) == len(seeds)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
