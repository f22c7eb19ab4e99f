"""Any file of comparisons as a suite of its own."""

from __future__ import annotations

from aplot_lightning.evaluation.suites.scores import (
    Figures,
    Table,
    entries,
    mean_score,
    pair_values,
    part_scores,
    results,
    value_of,
)


def pairs(table: Table) -> Figures:
    """Accuracy over all pairs, and of each subset that the rows name.

    Rule: a pair is right where the preferred response has the higher reward; a tie in reward is wrong; a pair with a
    target of 1/2 is left out. A comparison of many responses counts with each of its pairs, as in a run's metrics.json.
    Source: none; the accuracy of docs/method.md, section 5.

    Args:
        table: columns of predictions/*.parquet, (n,) each.
    """
    values, prompts, subsets = pair_values(table)
    score = mean_score(values, prompts)
    parts = part_scores(values, prompts, subsets)
    columns = {"Accuracy": value_of(score), **{name: value_of(part) for name, part in parts.items()}}
    return Figures(results("pairs", score, entries(parts)), score, columns)
