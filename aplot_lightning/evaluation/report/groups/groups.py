"""Groups of runs as they are read: which runs belong together over the groups, and which sets they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.report.runs import Run, read_run

VALIDATION, ID = "validation", "id"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: what tables call it.
        runs: by what pairs them with the runs of other groups: their seed, or else their place.
    """

    name: str
    runs: dict[int, Run]


def read_groups(groups: Mapping[str, Sequence[str | Path]]) -> tuple[list[Group], list[str]]:
    """Reads all runs, and says in notes how they are paired where that is not by the same seeds.

    Runs are paired by the `seed_everything` of their configs, so a run that is missing shifts no others; by place where
    a group has a seed twice or none, or shares none with the first group.

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


def set_kinds(groups: Sequence[Group]) -> dict[str, str]:
    """Every set that a run has, in the order of tables, and its kind: validation, ood_validation, id or ood."""
    metrics = [run.metrics for group in groups for run in group.runs.values()]
    kinds: dict[str, str] = {}
    if any(each.get(VALIDATION) for each in metrics):
        kinds[VALIDATION] = VALIDATION
    kinds |= {name: "ood_validation" for each in metrics for name in each.get("ood_validation") or {}}
    kinds[ID] = ID
    return kinds | {name: "ood" for each in metrics for name in each.get("ood") or {}}


def figures(run: Run, name: str, kind: str) -> Mapping[str, Any]:
    """A set's entry in metrics.json; empty where the run does not have the set."""
    return (run.metrics.get(name) if kind in (VALIDATION, ID) else (run.metrics.get(kind) or {}).get(name)) or {}
