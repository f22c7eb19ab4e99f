"""Compares groups of runs: reads them, and fills the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from aplot_lightning.evaluation.report.compare import OOD_MEAN
from aplot_lightning.evaluation.report.groups.answers import Answers, answers
from aplot_lightning.evaluation.report.groups.cells import (
    OOD_MEAN_KIND,
    Cell,
    corrected,
    difference_of,
    mean_of,
    metrics_of,
)
from aplot_lightning.evaluation.report.groups.costs import cost_of
from aplot_lightning.evaluation.report.groups.groups import Group, read_groups, set_kinds
from aplot_lightning.evaluation.report.groups.table import FamilyTable

Found = dict[str, list[Answers | None]]  # for each set, one for each group


def compare_groups(groups: Mapping[str, Sequence[str | Path]]) -> FamilyTable:
    """Accuracy, paired differences to the first group, and cost of groups of runs, over prompts and seeds.

    Args:
        groups: name -> its run directories, one a seed. The first group is the baseline. Runs are paired over groups by
            the `seed_everything` of their configs, else by place. One run for each group works too.

    Returns:
        A table with `text()`, `markdown()`, `write_csv(path)`, `draw(folder)`, `cell(group, set)` and `cells`.

    Raises:
        UserError: there is no group, a group has no run, or a directory is not a finished run.
    """
    read, notes = read_groups(groups)
    kinds = set_kinds(read)
    found: Found = {name: [answers(group, name) for group in read] for name in kinds}
    evaluated = [any(found[name][place] for name in kinds) for place in range(len(read))]
    ood = [name for name, kind in kinds.items() if kind == "ood"]
    shared = [name for name in ood if all(a or not done for a, done in zip(found[name], evaluated, strict=True))]
    rows = {name: {name: kind} for name, kind in kinds.items()}
    if ood:
        rows[OOD_MEAN] = dict.fromkeys(shared, "ood")
    cells = [_cell(name, sets, place, read, found) for place in range(len(read)) for name, sets in rows.items()]
    notes += _notes(read, evaluated, found, [name for name in ood if name not in shared])
    return FamilyTable(
        groups={group.name: tuple(run.path for run in group.runs.values()) for group in read},
        sets={name: kinds.get(name, OOD_MEAN_KIND) for name in rows},
        cells={(cell.group, cell.name): cell for cell in corrected(cells)},
        costs={group.name: cost_of(group) for group in read},
        notes=notes,
    )


def _cell(name: str, sets: Mapping[str, str], place: int, groups: Sequence[Group], found: Found) -> Cell:
    own, first = ([found[each][k] for each in sets] for k in (place, 0))
    difference = difference_of(own, first) if place else None
    kind = OOD_MEAN_KIND if name == OOD_MEAN else sets[name]
    metrics = metrics_of(groups[place], sets)
    return Cell(groups[place].name, name, kind, mean_of(own), difference, metrics)


def _notes(groups: Sequence[Group], evaluated: Sequence[bool], found: Found, left_out: Sequence[str]) -> list[str]:
    notes = [f"{group.name} was not evaluated." for group, done in zip(groups, evaluated, strict=True) if not done]
    if left_out and any(evaluated):
        notes.append(f"{OOD_MEAN} leaves out {', '.join(left_out)}, which not every group has.")
    for name, each in found.items():
        for group, own in zip(groups, each, strict=True):
            if own and len(own.seeds) < len(group.runs):
                notes.append(f"{name}: {group.name} was evaluated in {len(own.seeds)} of its {len(group.runs)} runs.")
    for name, (first, *others) in found.items():
        for group, other in zip(groups[1:], others, strict=True):
            if first and other and first.keys != other.keys and set(first.keys) != set(other.keys):
                common = len(other.minus(first).keys)
                notes.append(
                    f"{name}: {groups[0].name} has {len(first.keys)} pairs and {group.name} {len(other.keys)}; "
                    f"their difference is on the {common} that both have."
                )
    return notes
