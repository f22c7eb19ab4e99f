"""JudgeBench: pairs of answers of one strong model, one right and one wrong."""

from __future__ import annotations

from aplot_lightning.evaluation.suites.scores import Columns, Figures, figures, missing_notes, pair_scores, value_of

COLUMNS = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}
COUNTS = {"mmlu-pro": 154, "livebench-reasoning": 98, "livebench-math": 56, "livecodebench": 42}  # of GPT-4o's 350
OTHER_FILE = 270  # Claude's pairs


def judgebench(table: Columns) -> Figures:
    """Accuracy over all pairs, and of the four sources that a pair's ``source`` begins with.

    Rule: a pair is right where the right answer has the higher reward. A reward model judges each answer by itself, so
    one order is enough (the suite's ``--single_game``), and the two orders that it asks prompted judges for would
    agree. A tie is wrong; the suite's reward-model judges say B>A to a tie, which is right wherever the label is B>A.

    Source: Tan et al. 2024 (arXiv:2410.12784); ScalerLab/JudgeBench, run_judge.py and utils/judges.py.

    Args:
        table: columns of predictions/*.parquet, (n,) each; subset is one of the four sources.
    """
    score, parts = pair_scores(table, tuple(COUNTS))
    columns = {column: value_of(parts[name]) for name, column in COLUMNS.items()}
    columns["Overall"] = value_of(score)
    counts = dict.fromkeys(COUNTS) if score is not None and score.count == OTHER_FILE else COUNTS
    return figures("judgebench", score, parts, columns, missing_notes(parts, counts))
