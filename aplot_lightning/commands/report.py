"""aplot report: the report of one run, or several runs side by side."""

from __future__ import annotations

from pathlib import Path

from aplot_lightning.errors import UserError

BY_PLACE = {"runs": "run directories; the first is what the others are compared with"}


def main(runs: list[str], *, output: str | None = None) -> None:
    """Shows how a run does in distribution and out of distribution, or several runs side by side.

    With one run, writes its report.md and plots again. With several, prints accuracies side by side with 95 %
    intervals, and each run's paired difference to the first.

    Args:
        runs: run directories; with several, the first is what the others are compared with.
        output: a folder for comparison.md and comparison.png, with two or more runs.
    """
    if len(runs) == 1 and output is not None:
        raise UserError("--output needs two or more runs; the report of a single one goes into its own folder")
    from aplot_lightning.evaluation.report import compare_runs, runs_text, write_comparison_of_runs, write_run_report

    results = compare_runs(runs)
    print(runs_text(results))
    if len(runs) == 1:
        print(f"\nreport: {write_run_report(runs[0])}")
    elif output is not None:
        try:
            path = write_comparison_of_runs(results, Path(output))
        except OSError as error:
            raise UserError(f"--output {output} cannot be written ({error.strerror}); name another folder") from None
        print(f"\ncomparison: {path}")
