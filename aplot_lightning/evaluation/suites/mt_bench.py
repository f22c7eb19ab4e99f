"""MT-Bench's human judgements."""

from __future__ import annotations

from aplot_lightning.evaluation.suites.scores import Columns, Figures, figures, missing_notes, pair_scores, value_of

TURNS = ("first turn", "second turn")


def mt_bench(table: Columns) -> Figures:
    """Agreement with people's votes, over all votes that are no tie, and by the turn that was judged.

    Rule: each vote of a person for one of two conversations counts once, also where several people saw the same two;
    votes for a tie are left out (GRM's script counts them as wins of one side). A vote on the first turn compares the
    first answers, one on the second turn the whole conversations. A tie in reward is wrong. The interval draws
    questions: all votes on one of the 80 questions together.

    Source: Zheng et al. 2023 (arXiv:2306.05685), "setup S2" (without ties); lmsys/mt_bench_human_judgments, split
    human (3,355 votes with ties).

    Args:
        table: columns of predictions/*.parquet, (n,) each; subset is one of `TURNS`, prompt the question.
    """
    score, parts = pair_scores(table, TURNS)
    columns = {name.capitalize(): value_of(parts[name]) for name in TURNS}
    columns["All votes"] = value_of(score)
    notes = missing_notes(parts, dict.fromkeys(TURNS))  # how many votes are no tie is not said
    return figures("mt_bench", score, parts, columns, notes)
