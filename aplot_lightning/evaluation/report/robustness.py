"""Accuracy along an axis such as label noise or the amount of data: one row a group, one column a level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aplot_lightning.evaluation.report.estimates import Difference, Mean
from aplot_lightning.evaluation.report.frame import OOD_MEAN
from aplot_lightning.evaluation.report.results import GroupResults
from aplot_lightning.evaluation.report.tables import Table, estimate_text


@dataclass(frozen=True)
class RobustnessTable:
    """One set's accuracies along an axis.

    Attributes:
        axis: what varies, such as ``label_noise``.
        name: the set.
        levels: the axis' values as text, in order.
        accuracies: group -> one for each level; None if the group has no run there.
        differences: group -> to the first group at the same level; None for the first group.
    """

    axis: str
    name: str
    levels: list[str]
    accuracies: dict[str, list[Mean | None]]
    differences: dict[str, list[Difference | None]]

    def table(self) -> Table:
        """The accuracies with their intervals."""
        rows = [[group, *map(estimate_text, means)] for group, means in self.accuracies.items()]
        return Table([f"{self.name}, {self.axis}", *self.levels], rows)


def robustness_table(results: Mapping[float | str, GroupResults], axis: str, name: str = OOD_MEAN) -> RobustnessTable:
    """Puts the results of several levels side by side.

    Args:
        results: level -> what `compare_groups` returned for the runs at this level, in the order of the columns.
        axis: the levels' name in the heading: ``label_noise``, ``train_fraction``.
        name: the set, such as ``id`` or ``OOD mean``.
    """
    groups = list(dict.fromkeys(group for each in results.values() for group in each.groups))
    found = {group: [each.results.get((group, name)) for each in results.values()] for group in groups}
    return RobustnessTable(
        axis,
        name,
        [str(level) for level in results],
        {group: [result.accuracy if result else None for result in each] for group, each in found.items()},
        {group: [result.difference if result else None for result in each] for group, each in found.items()},
    )
