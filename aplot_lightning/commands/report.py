"""aplot report: the report of one run, or several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aplot_lightning.errors import UserError

if TYPE_CHECKING:
    from aplot_lightning.evaluation.report import RunTable

HOW_TO_READ = (
    "Accuracy with its 95 % interval (bootstrap over prompts); differences are on the pairs that both runs have. "
    "Chance is 0.5."
)
PICTURE = "![Accuracy of each run and set with its interval](comparison.png)"

BY_PLACE = {"runs": "run directories; the first is what the others are compared with"}


def main(runs: list[str], *, output: str | None = None) -> None:
    """Shows how a run does in distribution and out of distribution, or several runs side by side.

    With one run, its report.md and plots are written again. With several, accuracies stand side by side with 95 %
    intervals, and each run's paired difference to the first.

    Args:
        runs: run directories; with several, the first is what the others are compared with.
        output: a folder for comparison.md and comparison.png, with two or more runs.
    """
    if len(runs) == 1 and output is not None:
        raise UserError("--output needs two or more runs; the report of a single one goes into its own folder")
    from aplot_lightning.evaluation.report import compare_runs, write_run_report

    table = compare_runs(runs)
    print(table.text())
    if len(runs) == 1:
        print(f"\nreport: {write_run_report(runs[0])}")
    elif output is not None:
        print(f"\ncomparison: {_write_comparison(table, Path(output))}")


def _write_comparison(table: RunTable, folder: Path) -> Path:
    from aplot_lightning.evaluation.report.plots import draw_accuracies

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made a folder ({error.strerror}); name another") from None
    draw_accuracies(table, folder / "comparison.png")
    path = folder / "comparison.md"
    parts = ["# Runs side by side", table.markdown(), HOW_TO_READ, PICTURE]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
