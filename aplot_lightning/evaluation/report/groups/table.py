"""The table of groups of runs, and its forms: text, Markdown, CSV and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aplot_lightning.evaluation.report.compare import OOD_MEAN
from aplot_lightning.evaluation.report.groups.cells import Cell
from aplot_lightning.evaluation.report.groups.costs import Cost


@dataclass(frozen=True)
class FamilyTable:
    """What `compare_groups` finds.

    Attributes:
        groups: name -> its run directories, in the order given; the first group is what the others are compared with.
        sets: name -> kind (validation, ood_validation, id, ood, ood_mean), in the order of tables.
        cells: (group, set) -> accuracy, difference to the first group, and further metrics.
        costs: group -> steps to converge, time, throughput, memory.
        notes: sentences on what cannot be compared, or not as it should be.
    """

    groups: dict[str, tuple[Path, ...]]
    sets: dict[str, str]
    cells: dict[tuple[str, str], Cell]
    costs: dict[str, Cost]
    notes: list[str]

    @property
    def first(self) -> str:
        """The group that the others are compared with."""
        return next(iter(self.groups))

    @property
    def questions(self) -> dict[str, str]:
        """The sets that Holm's family is over, and what they are called: those of ID and OOD mean that there are."""
        names = {"id": "ID", OOD_MEAN: OOD_MEAN}
        return {name: shown for name, shown in names.items() if name in self.sets}

    def cell(self, group: str, name: str) -> Cell:
        """A group on a set, such as ``id`` or ``OOD mean``."""
        return self.cells[group, name]

    def text(self) -> str:
        """A short table for a terminal: accuracies, differences to the first group, and corrected p-values."""
        from aplot_lightning.evaluation.report.groups.page import short_text

        return short_text(self)

    def sentences(self) -> list[str]:
        """One plain sentence for each question: on ID, on the OOD mean, and on the speed of convergence."""
        from aplot_lightning.evaluation.report.groups.sentences import sentences

        return sentences(self)

    def markdown(self, pictures: Sequence[str] = ()) -> str:
        """All of it as Markdown: answers, main table, cost, every set, how to read it.

        Args:
            pictures: paths of what `draw` made, as they are seen from the Markdown file.
        """
        from aplot_lightning.evaluation.report.groups.page import page

        return page(self, pictures)

    def write_csv(self, path: str | Path) -> tuple[Path, Path]:
        """Writes one row for each group, seed, set and metric, and beside it NAME_estimates.csv with the statistics.

        Returns:
            The paths of both files.
        """
        from aplot_lightning.evaluation.report.groups.values import write_csv

        return write_csv(self, Path(path))

    def draw(self, folder: str | Path) -> list[Path]:
        """Draws differences.png, id_against_ood.png and learning_curves.png, those that there are figures for.

        Args:
            folder: of the files; made if it is not there.
        """
        from aplot_lightning.evaluation.report.groups.plots import draw

        return draw(self, Path(folder))
