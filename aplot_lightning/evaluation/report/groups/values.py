"""The table of groups as two CSV files: every value of every seed, and every statistic."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.evaluation.report.groups.cells import Difference, Mean

if TYPE_CHECKING:
    from aplot_lightning.evaluation.report.groups.table import FamilyTable

VALUES = ("group", "seed", "set", "metric", "value")
ESTIMATES = ("group", "set", "metric", "value", "low", "high", "p", "p_prompts", "p_holm", "pairs", "seeds")


def write_csv(table: FamilyTable, path: Path) -> tuple[Path, Path]:
    """Writes NAME.csv with a row for each group, seed, set and metric, and NAME_estimates.csv with the statistics.

    What belongs to a whole run, such as its seconds, has the set ``train``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    estimates = path.with_name(f"{path.stem}_estimates{path.suffix}")
    _write(path, VALUES, _values(table))
    _write(estimates, ESTIMATES, _estimates(table))
    return path, estimates


def _write(path: Path, header: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _values(table: FamilyTable) -> Iterator[Sequence[Any]]:
    for group in table.groups:
        for name in table.sets:
            for metric, by_seed in table.cell(group, name).metrics.items():
                yield from ((group, seed, name, metric, value) for seed, value in by_seed.items())
        cost = table.costs[group]
        for metric, by_seed in cost.training.items():
            yield from ((group, seed, "train", metric, value) for seed, value in by_seed.items())
        for seed, convergence in cost.convergence.items():
            if convergence.steps is not None:
                yield group, seed, "train", "steps_to_95_percent", convergence.steps


def _estimates(table: FamilyTable) -> Iterator[Sequence[Any]]:
    for (group, name), cell in table.cells.items():
        if cell.accuracy:
            yield group, name, "accuracy", *_mean(cell.accuracy)
        if cell.difference:
            yield group, name, "difference", *_mean(cell.difference)


def _mean(mean: Mean) -> Sequence[Any]:
    low, high = mean.interval or (None, None)
    tested = [mean.p_value, mean.p_prompts, mean.p_holm] if isinstance(mean, Difference) else [None] * 3
    return mean.value, low, high, *tested, mean.pairs, mean.seeds
