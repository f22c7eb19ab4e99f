"""LLMBar: does a judge see which of two outputs follows the instruction."""

from __future__ import annotations

from aplot_lightning.evaluation.suites.scores import (
    Columns,
    Figures,
    Score,
    figures,
    missing_notes,
    pair_scores,
    value_of,
    weighted,
)

COUNTS = {
    "Natural": 100,
    "Adversarial/Neighbor": 134,
    "Adversarial/GPTInst": 92,
    "Adversarial/GPTOut": 47,
    "Adversarial/Manual": 46,
}


def llmbar(table: Columns) -> Figures:
    """Accuracy over all 419 pairs, of the five parts, and the paper's two averages.

    Rule: a pair is right where the output that follows the instruction has the higher reward; a tie is wrong. The
    paper's table has an average over the four adversarial parts and one over all five, both unweighted: the columns
    "Adversarial" and "Average" (its reward-model-sim: 68.0, 17.9, 20.7, 59.6, 26.1 give 31.1 and 38.4).
    ``accuracy`` is over all pairs, so that its interval and paired differences are those of any other set.

    Source: Zeng et al. 2024 (arXiv:2310.07641), tables 2 and 3; princeton-nlp/LLMBar.

    Args:
        table: columns of predictions/*.parquet, (n,) each; a subset may have the suite's folder before it.
    """
    found = dict.fromkeys(map(str, table["subset"]))
    given = {part: next((name for name in found if _is(name, part)), part) for part in COUNTS}
    score, parts = pair_scores(table, tuple(given.values()))
    known = {part: parts[name] for part, name in given.items()}
    adversarial = [known[part] for part in COUNTS if part != "Natural"]
    columns = {part.rpartition("/")[2]: value_of(known[part]) for part in COUNTS}
    columns["Adversarial"] = _mean(adversarial)
    columns["Average"] = _mean([*known.values()])
    columns["All pairs"] = value_of(score)
    return figures("llmbar", score, parts, columns, missing_notes(known, COUNTS))


def _is(name: str, part: str) -> bool:
    return name == part or name.endswith(f"/{part}")


def _mean(parts: list[Score | None]) -> float | None:
    whole = [part for part in parts if part is not None]
    return value_of(weighted(whole)) if len(whole) == len(parts) else None
