"""Groups of runs, such as one objective with several seeds, side by side: statistics, tables and plots."""

from aplot_lightning.evaluation.report.groups.cells import Cell, Difference, Mean
from aplot_lightning.evaluation.report.groups.compare import compare_groups
from aplot_lightning.evaluation.report.groups.costs import Cost
from aplot_lightning.evaluation.report.groups.robustness import RobustnessTable, robustness_table
from aplot_lightning.evaluation.report.groups.table import FamilyTable

__all__ = [
    "Cell",
    "Cost",
    "Difference",
    "FamilyTable",
    "Mean",
    "RobustnessTable",
    "compare_groups",
    "robustness_table",
]
