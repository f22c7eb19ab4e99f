"""Compares runs, or groups of runs with several seeds: one path from run directories to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aplot_lightning.evaluation.report.convergence import Convergence, Curve, steps_to_converge, validation_curve
from aplot_lightning.evaluation.report.estimates import Difference, Mean, difference_of, mean_of, with_holm
from aplot_lightning.evaluation.report.frame import (
    ID,
    OOD,
    OOD_MEAN,
    OOD_MEAN_KIND,
    SELECTING,
    correct_frame,
    metrics_frame,
    ood_mean_rows,
    paired,
    set_kinds,
)
from aplot_lightning.evaluation.report.groups import Group, read_groups, single_runs

if TYPE_CHECKING:
    import pandas as pd

    Answers = dict[str, list[pd.DataFrame | None]]  # by set, a frame of `correct_frame` for each group

TESTED = (ID, OOD_MEAN)  # the sets of Holm's correction: the two questions that a comparison asks


@dataclass(frozen=True)
class SetResult:
    """One group on one set.

    Attributes:
        accuracy: None if no run of the group was evaluated on it.
        difference: to the first group; None for the first group itself, and if the two have nothing in common.
    """

    accuracy: Mean | None
    difference: Difference | None


@dataclass(frozen=True)
class GroupResults:
    """The figures of groups of runs.

    Attributes:
        groups: name -> its run directories, in the order given. The others are compared with the first group.
        sets: name -> kind (validation, ood_validation, id, ood, ood_mean), in the order of tables.
        results: (group, set) -> accuracy and difference to the first group.
        frame: every number of the runs' metrics.json, as `metrics_frame` returns it, and their means over OOD sets.
        curves: group -> seed -> steps and validation accuracies, of the runs that have them.
        convergence: group -> seed -> steps until the validation accuracy was nearly its last; empty for `compare_runs`.
        notes: sentences on what cannot be compared, or not as expected.
    """

    groups: dict[str, tuple[Path, ...]]
    sets: dict[str, str]
    results: dict[tuple[str, str], SetResult]
    frame: pd.DataFrame
    curves: dict[str, dict[int, Curve]]
    convergence: dict[str, dict[int, Convergence]]
    notes: list[str]

    @property
    def first(self) -> str:
        """The group that the others are compared with."""
        return next(iter(self.groups))

    @property
    def questions(self) -> dict[str, str]:
        """The sets of Holm's correction that exist, and their names in headings."""
        return {name: "ID" if name == ID else name for name in TESTED if name in self.sets}

    def result(self, group: str, name: str) -> SetResult:
        """A group on a set, such as ``id`` or ``OOD mean``."""
        return self.results[group, name]

    def values(self, group: str, name: str, metric: str) -> dict[int, float]:
        """A metric of metrics.json for each seed that has it; ``train`` is the set of figures of the training."""
        frame = self.frame
        own = frame[
            (frame["group"] == group) & (frame["set"] == name) & (frame["subset"] == "") & (frame["metric"] == metric)
        ]
        return dict(zip(own["seed"], own["value"], strict=True))


def compare_runs(run_dirs: Sequence[str | Path]) -> GroupResults:
    """Accuracy of every run on `id`, every OOD set and their mean, with 95 % intervals over prompts.

    Differences are those to the first run, on the pairs that both have (same set, id and prompt). The OOD mean is over
    the sets that all evaluated runs have.

    Raises:
        UserError: no directory is given, or one is not a finished run.
    """
    return _compare(single_runs(run_dirs), (ID, OOD), "run")


def compare_groups(groups: Mapping[str, Sequence[str | Path]]) -> GroupResults:
    """Accuracy, paired differences to the first group, and cost of groups of runs, over prompts and seeds.

    Args:
        groups: name -> its run directories, one a seed. The first group is the baseline. Runs are paired over groups by
            the `seed_everything` of their configs, else by position. One run for each group works too.

    Raises:
        UserError: there is no group, a group has no run, or a directory is not a finished run.
    """
    read, notes = read_groups(groups)
    results = _compare(read, (*SELECTING, ID, OOD), "group")
    found = {
        group.name: {seed: curve for seed, run in group.runs.items() if (curve := validation_curve(run)) is not None}
        for group in read
    }
    convergence = {
        group.name: {seed: steps_to_converge(found[group.name].get(seed)) for seed in group.runs} for group in read
    }
    return replace(results, curves=found, convergence=convergence, notes=[*notes, *results.notes])


def _compare(groups: Sequence[Group], kinds: Sequence[str], noun: str) -> GroupResults:
    """The results on the sets of some kinds; notes call a group by `noun`."""
    frame = metrics_frame(groups)
    sets = {name: kind for name, kind in set_kinds(frame).items() if kind in kinds}
    answers: Answers = {name: [correct_frame(group, name) for group in groups] for name in sets}
    evaluated = [any(each[index] is not None for each in answers.values()) for index in range(len(groups))]
    ood = [name for name in frame.loc[frame["kind"] == OOD, "set"].unique() if name in sets]  # draws follow the files
    shared = [
        name
        for name in ood
        if all(own is not None or not done for own, done in zip(answers[name], evaluated, strict=True))
    ]
    rows = {name: [name] for name in sets}
    if ood:
        rows[OOD_MEAN] = shared
        sets[OOD_MEAN] = OOD_MEAN_KIND
        frame = _joined(frame, ood_mean_rows(frame, shared))
    return GroupResults(
        groups={group.name: tuple(run.path for run in group.runs.values()) for group in groups},
        sets=sets,
        results=_results(groups, rows, answers),
        frame=frame,
        curves={},
        convergence={},
        notes=_notes(groups, evaluated, answers, [name for name in ood if name not in shared], noun),
    )


def _joined(frame: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([frame, more], ignore_index=True) if len(more) else frame


def _results(
    groups: Sequence[Group], rows: Mapping[str, Sequence[str]], answers: Answers
) -> dict[tuple[str, str], SetResult]:
    """Accuracies and differences; `rows` holds for each row of a table the sets that its figure is the mean of."""
    accuracies, differences = {}, {}
    for index, group in enumerate(groups):
        for name, sets in rows.items():
            own, first = ([answers[each][k] for each in sets] for k in (index, 0))
            accuracies[group.name, name] = mean_of(own)
            if index and (difference := difference_of(own, first)) is not None:
                differences[group.name, name] = difference
    tested = {key: each for key, each in differences.items() if key[1] in TESTED}
    differences |= with_holm(tested)
    return {key: SetResult(accuracy, differences.get(key)) for key, accuracy in accuracies.items()}


def _notes(
    groups: Sequence[Group], evaluated: Sequence[bool], answers: Answers, left_out: Sequence[str], noun: str
) -> list[str]:
    notes = [f"{group.name} was not evaluated." for group, done in zip(groups, evaluated, strict=True) if not done]
    if left_out and any(evaluated):
        notes.append(f"{OOD_MEAN} leaves out {', '.join(sorted(left_out))}, which not every {noun} has.")
    for name, each in answers.items():
        for group, own in zip(groups, each, strict=True):
            if own is not None and len(own.columns) < len(group.runs):
                notes.append(f"{name}: {group.name} was evaluated in {len(own.columns)} of its {len(group.runs)} runs.")
    for name, (first, *others) in answers.items():
        for group, other in zip(groups[1:], others, strict=True):
            common = paired(other, first)
            if first is None or other is None or common is None or len(common) == len(first) == len(other):
                continue
            notes.append(
                f"{name}: {groups[0].name} has {len(first)} pairs and {group.name} {len(other)}; "
                f"their difference is on the {len(common)} that both have."
            )
    return notes
