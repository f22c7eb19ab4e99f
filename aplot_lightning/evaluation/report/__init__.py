"""Tables and plots of one run, and of several runs side by side: files in, files out."""

from aplot_lightning.evaluation.report.compare import RunTable, compare_runs
from aplot_lightning.evaluation.report.page import write_run_report
from aplot_lightning.evaluation.report.plots import plot_runs
from aplot_lightning.evaluation.report.runs import Run, read_run

__all__ = ["Run", "RunTable", "compare_runs", "plot_runs", "read_run", "write_run_report"]
