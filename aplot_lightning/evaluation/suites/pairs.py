"""Any file of comparisons as a suite of its own."""

from __future__ import annotations

from aplot_lightning.evaluation.suites.scores import Columns, Figures, figures, pair_scores, value_of


def pairs(table: Columns) -> Figures:
    """Accuracy over all pairs, and of each subset that the rows name.

    Rule: a pair is right where the preferred response has the higher reward; a tie in reward is wrong; a pair with a
    target of 1/2 is left out. A comparison of many responses counts with each of its pairs, as in a run's metrics.json.
    Source: none; the accuracy of docs/method.md, section 5.

    Args:
        table: columns of predictions/*.parquet, (n,) each.
    """
    score, parts = pair_scores(table)
    columns = {"Accuracy": value_of(score), **{name: value_of(part) for name, part in parts.items()}}
    return figures("pairs", score, parts, columns, [])
