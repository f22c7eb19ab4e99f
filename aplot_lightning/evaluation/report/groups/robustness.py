"""How accuracy goes with label noise, with less data, or along any other axis: a row a group, a column a level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aplot_lightning.evaluation.report.compare import OOD_MEAN
from aplot_lightning.evaluation.report.groups.cells import Difference, Mean
from aplot_lightning.evaluation.report.groups.table import FamilyTable
from aplot_lightning.evaluation.report.tables import escape, estimate_text, markdown_table, text_table


@dataclass(frozen=True)
class RobustnessTable:
    """One set's accuracies along an axis.

    Attributes:
        axis: what varies, such as ``label_noise``.
        name: the set.
        levels: the axis' values as text, in order.
        accuracies: group -> one for each level; None where it has no run.
        differences: group -> to the first group at the same level; None for the first group.
    """

    axis: str
    name: str
    levels: list[str]
    accuracies: dict[str, list[Mean | None]]
    differences: dict[str, list[Difference | None]]

    def text(self) -> str:
        """The table for a terminal."""
        return text_table(self._header(), self._rows())

    def markdown(self) -> str:
        """The same as Markdown."""
        rows = [[escape(row[0]), *row[1:]] for row in self._rows()]
        return markdown_table([escape(each) for each in self._header()], rows)

    def _header(self) -> list[str]:
        return [f"{self.name}, {self.axis}", *self.levels]

    def _rows(self) -> list[list[str]]:
        return [[group, *map(estimate_text, means)] for group, means in self.accuracies.items()]


def robustness_table(tables: Mapping[float | str, FamilyTable], axis: str, name: str = OOD_MEAN) -> RobustnessTable:
    """Lays the tables of several levels side by side.

    Args:
        tables: level -> what `compare_groups` gave for the runs at this level, in the order of the columns.
        axis: what the levels are, for the heading: ``label_noise``, ``train_fraction``.
        name: the set, such as ``id`` or ``OOD mean``.
    """
    groups = list(dict.fromkeys(group for table in tables.values() for group in table.groups))
    cells = {group: [table.cells.get((group, name)) for table in tables.values()] for group in groups}
    return RobustnessTable(
        axis,
        name,
        [str(level) for level in tables],
        {group: [cell.accuracy if cell else None for cell in each] for group, each in cells.items()},
        {group: [cell.difference if cell else None for cell in each] for group, each in cells.items()},
    )
