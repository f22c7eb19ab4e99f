"""Several runs side by side: accuracy of each set, and paired differences to the first run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.report.outcomes import Estimate, Outcomes, estimate, outcomes
from aplot_lightning.evaluation.report.runs import Run, read_run, run_labels
from aplot_lightning.evaluation.report.tables import escape, estimate_text, markdown_table, text_table

OOD_MEAN = "OOD mean"


@dataclass(frozen=True)
class Row:
    """One set.

    Attributes:
        name: ``id``, an OOD set's own name, or ``OOD mean``.
        accuracies: one for each run; None where the run was not evaluated on it.
        differences: to the first run, on the pairs that both have, one for each run after it.
    """

    name: str
    accuracies: list[Estimate | None]
    differences: list[Estimate | None]


@dataclass(frozen=True)
class RunTable:
    """What `compare_runs` finds.

    Attributes:
        runs: a short name for each run.
        rows: `id`, the OOD sets, and their unweighted mean where there are any.
        notes: sentences on what cannot be compared.
    """

    runs: list[str]
    rows: list[Row]
    notes: list[str]

    def text(self) -> str:
        """The table for a terminal."""
        header = ["set", "pairs", *self.runs, *(f"{run} - {self.runs[0]}" for run in self.runs[1:])]
        return "\n".join([text_table(header, self._cells()), *self.notes])

    def markdown(self) -> str:
        """The table and its notes as Markdown."""
        names = [escape(run) for run in self.runs]
        header = ["set", "pairs", *names, *(f"{name} − {names[0]}" for name in names[1:])]
        rows = [[escape(row[0]), *row[1:]] for row in self._cells()]
        return "\n\n".join([markdown_table(header, rows), *map(escape, self.notes)])

    def _cells(self) -> list[list[str]]:
        return [
            [
                row.name,
                str(max((accuracy.pairs for accuracy in row.accuracies if accuracy), default=0)),
                *(estimate_text(accuracy) for accuracy in row.accuracies),
                *(estimate_text(difference, sign=True) for difference in row.differences),
            ]
            for row in self.rows
        ]


def compare_runs(run_dirs: Sequence[str | Path]) -> RunTable:
    """Accuracy of every run on `id`, every OOD set and their mean, with 95 % intervals over prompts.

    The first run is the one that the others are compared with: differences are theirs minus its own, on the pairs that
    both have (same set, id and prompt). The OOD mean is over the sets that all evaluated runs have.

    Raises:
        UserError: no directory is given, or one is not a finished run.
    """
    if not run_dirs:
        raise UserError("no run is given; name one or more run directories, the folders that `fit` wrote")
    runs = [read_run(run_dir) for run_dir in run_dirs]
    labels = run_labels(runs)
    ood = list(dict.fromkeys(name for run in runs for name in run.ood_sets))
    results = {name: [_outcomes(run, name) for run in runs] for name in ("id", *ood)}
    evaluated = [any(results[name][place] for name in results) for place in range(len(runs))]
    shared = [name for name in ood if all(results[name][place] for place in range(len(runs)) if evaluated[place])]
    rows = [_row(name, [[result] for result in each]) for name, each in results.items()]
    if ood:
        rows.append(_row(OOD_MEAN, [[results[name][place] for name in shared] for place in range(len(runs))]))
    return RunTable(labels, rows, _notes(labels, evaluated, results, [name for name in ood if name not in shared]))


def _outcomes(run: Run, name: str) -> Outcomes | None:
    predictions = run.predictions(name)
    return outcomes(predictions) if predictions else None


def _row(name: str, runs: Sequence[Sequence[Outcomes | None]]) -> Row:
    """`runs` holds for each run the sets whose mean the row shows."""
    known = [[each for each in sets if each is not None] for sets in runs]
    complete = [len(kept) == len(sets) for kept, sets in zip(known, runs, strict=True)]
    accuracies = [estimate(kept) if whole else None for kept, whole in zip(known, complete, strict=True)]
    differences = [
        estimate([a.minus(b) for a, b in zip(kept, known[0], strict=True)]) if whole and complete[0] else None
        for kept, whole in zip(known[1:], complete[1:], strict=True)
    ]
    return Row(name, accuracies, differences)


def _notes(
    labels: list[str], evaluated: list[bool], results: dict[str, list[Outcomes | None]], left_out: list[str]
) -> list[str]:
    notes = [f"{label} was not evaluated." for label, done in zip(labels, evaluated, strict=True) if not done]
    if left_out and any(evaluated):
        notes.append(f"{OOD_MEAN} leaves out {', '.join(left_out)}, which not every run has.")
    for name, (first, *others) in results.items():
        for label, other in zip(labels[1:], others, strict=True):
            if first and other and set(first.keys) != set(other.keys):
                common = len(other.minus(first))
                notes.append(
                    f"{name}: {labels[0]} has {len(first)} pairs and {label} {len(other)}; "
                    f"their difference is on the {common} that both have."
                )
    return notes
