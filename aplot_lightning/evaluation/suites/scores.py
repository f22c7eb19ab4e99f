"""Scores of parts of a suite with their bootstrap samples, and weighted means of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aplot_lightning.evaluation.statistics import bootstrap_means, counted, percentiles, right

Columns = Mapping[str, Any]  # of a predictions file, (n,) each
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A score in [0, 1].

    Attributes:
        value: the score.
        resampled: (resamples,) the score of each bootstrap sample over prompts; None with fewer than two prompts.
        count: the pairs or prompts that it is over.
    """

    value: float
    resampled: Floats | None
    count: int

    def entry(self, unit: str = "pairs") -> dict[str, Any]:
        """Its entry in results.json: ``accuracy``, ``ci95`` (95 %, over prompts; None if unknown), ``pairs``."""
        interval = None if self.resampled is None else list(percentiles(self.resampled))
        return {"accuracy": self.value, "ci95": interval, unit: self.count}


@dataclass(frozen=True)
class Figures:
    """The figures of a suite's rule for a model's rewards.

    Attributes:
        results: the content of results.json.
        score: the suite's main figure with its bootstrap; None if a part that it needs is missing.
        columns: the table of the suite's leaderboard, one value a column, in [0, 1]; None if it is unknown.
        notes: sentences on missing rows or parts.
    """

    results: dict[str, Any]
    score: Score | None
    columns: dict[str, float | None]
    notes: list[str] = field(default_factory=list)


def mean_score(values: Floats, prompts: NDArray[np.int64], seed: int = 0) -> Score | None:
    """The mean of (n,) values with its bootstrap over prompts; None without values."""
    if not len(values):
        return None
    known = len(np.unique(prompts)) > 1
    return Score(float(values.mean()), bootstrap_means(values, prompts, seed=seed) if known else None, len(values))


def weighted(scores: Sequence[Score], weights: Sequence[float] | None = None) -> Score | None:
    """The weighted mean of scores of disjoint parts, whose prompts are drawn in each part on its own.

    Their bootstrap samples must come of different seeds. None without scores.
    """
    if not scores:
        return None
    shares = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    value = float(np.average([score.value for score in scores], weights=shares))
    samples = [score.resampled for score in scores if score.resampled is not None]
    resampled = np.average(samples, axis=0, weights=shares) if len(samples) == len(scores) else None
    return Score(value, resampled, sum(score.count for score in scores))


def pair_values(table: Columns) -> tuple[Floats, NDArray[np.int64], NDArray[np.str_]]:
    """Of the pairs that accuracy counts (target not 1/2): right (1) or wrong (0), prompts, subsets. A tie is wrong."""
    target = np.asarray(table["target"], dtype=np.float64)
    gap = np.asarray(table["chosen_reward"], dtype=np.float64) - np.asarray(table["rejected_reward"], dtype=np.float64)
    kept = counted(target)
    values = right(gap, target)[kept].astype(np.float64)
    return values, np.asarray(table["prompt"])[kept], np.asarray(table["subset"], dtype=str)[kept]


def part_scores(
    values: Floats, prompts: NDArray[np.int64], subsets: NDArray[np.str_], names: Sequence[str] = ()
) -> dict[str, Score | None]:
    """The score of each part: those of `names`, None if a part has no rows, then any others by first appearance.

    Rows without a subset ("") are in none. Each part has a seed of its own, so that their scores can be averaged.
    """
    members = {name: subsets == name for name in (*names, *dict.fromkeys(subsets.tolist())) if name}
    return {
        name: mean_score(values[member], prompts[member], seed) for seed, (name, member) in enumerate(members.items())
    }


def pair_scores(table: Columns, names: Sequence[str] = ()) -> tuple[Score | None, dict[str, Score | None]]:
    """The score over all pairs, and the score of each part as in `part_scores`."""
    values, prompts, subsets = pair_values(table)
    return mean_score(values, prompts), part_scores(values, prompts, subsets, names)


def figures(
    suite: str,
    score: Score | None,
    parts: Mapping[str, Score | None],
    columns: dict[str, float | None],
    notes: list[str],
    *,
    unit: str = "pairs",
) -> Figures:
    """The figures of a suite with an accuracy: results.json's ``subsets`` are the parts."""
    return Figures(results(suite, score, entries(parts, unit)), score, columns, notes)


def entries(scores: Mapping[str, Score | None], unit: str = "pairs") -> dict[str, dict[str, Any] | None]:
    """The ``subsets`` of results.json: null for a part without rows."""
    return {name: None if score is None else score.entry(unit) for name, score in scores.items()}


def results(suite: str, score: Score | None, subsets: Mapping[str, Any]) -> dict[str, Any]:
    """results.json of a suite with an accuracy."""
    entry = {"accuracy": None, "ci95": None} if score is None else score.entry()
    return {"suite": suite, "accuracy": entry["accuracy"], "ci95": entry["ci95"], "subsets": dict(subsets)}


def missing_notes(parts: Mapping[str, Score | None], counts: Mapping[str, int | None]) -> list[str]:
    """Notes on parts without rows, and with other numbers of rows than the public set has (None: unknown)."""
    there = {name: score.count if (score := parts.get(name)) else 0 for name in counts}
    absent = [name for name, count in there.items() if count == 0]
    other = [
        f"{name} {count} of {whole}"
        for name, whole in counts.items()
        if (count := there[name]) and whole is not None and count != whole
    ]
    notes = [f"no rows of {', '.join(absent)}: null"] if absent else []
    return notes + ([f"not the public set's numbers of rows: {', '.join(other)}"] if other else [])


def value_of(score: Score | None) -> float | None:
    return None if score is None else score.value
