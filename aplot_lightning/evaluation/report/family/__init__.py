"""Groups of runs, such as one objective with several seeds, side by side: statistics, tables and plots."""

from aplot_lightning.evaluation.report.family.cells import Cell, Difference, Mean
from aplot_lightning.evaluation.report.family.compare import compare_groups
from aplot_lightning.evaluation.report.family.costs import Cost
from aplot_lightning.evaluation.report.family.robustness import RobustnessTable, robustness_table
from aplot_lightning.evaluation.report.family.table import FamilyTable

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
