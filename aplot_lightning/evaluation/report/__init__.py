"""Reports of one run, of several runs side by side, and of groups of runs with several seeds: files in, files out."""

from aplot_lightning.evaluation.report.estimates import Difference, Mean
from aplot_lightning.evaluation.report.frame import OOD_MEAN
from aplot_lightning.evaluation.report.group_page import groups_page, groups_text, sentences
from aplot_lightning.evaluation.report.plots import draw_groups
from aplot_lightning.evaluation.report.results import GroupResults, SetResult, compare_groups, compare_runs
from aplot_lightning.evaluation.report.robustness import RobustnessTable, robustness_table
from aplot_lightning.evaluation.report.run_page import runs_table, runs_text, write_comparison_of_runs, write_run_report
from aplot_lightning.evaluation.report.runs import Run, read_run
from aplot_lightning.evaluation.report.values import estimates_frame, values_frame, write_csv

__all__ = [
    "OOD_MEAN",
    "Difference",
    "GroupResults",
    "Mean",
    "RobustnessTable",
    "Run",
    "SetResult",
    "compare_groups",
    "compare_runs",
    "draw_groups",
    "estimates_frame",
    "groups_page",
    "groups_text",
    "read_run",
    "robustness_table",
    "runs_table",
    "runs_text",
    "sentences",
    "values_frame",
    "write_comparison_of_runs",
    "write_csv",
    "write_run_report",
]
