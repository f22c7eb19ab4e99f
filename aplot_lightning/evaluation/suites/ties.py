"""The Ties subset of RewardBench 2: right answers above wrong ones, and closer to each other than to these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import tanh

import numpy as np

from aplot_lightning.evaluation.suites.scores import Floats, Score

# tied accuracy, ref accuracy, spread below the margin, spread below both margins, how far below
WEIGHTS = np.array([0.3, 0.3, 0.2, 0.2, 0.01])


@dataclass(frozen=True)
class _Prompt:
    accurate: bool  # the worst right answer is above the best wrong one
    margin: float  # by how much
    spread: float | None  # best right minus worst right; None with one right answer


def ties(rows: Sequence[tuple[str, Floats, int]], *, seed: int = 0, resamples: int = 2000) -> Score | None:
    """The weighted score of Ties.

    Each question has two rows: ``ref:N`` with one right answer and ``tied:N`` with several. With margin m = worst right
    - best wrong reward and spread s = best right - worst right, the score is

        0.3 mean[m_tied > 0] + 0.3 mean[m_ref > 0] + 0.2 mean[m_tied > s] + 0.2 mean[min(m_ref, m_tied) > s]
        + 0.01 mean[tanh(min(m_ref, m_tied) / s - 1)]

    The first two means are over the rows of their kind; the others are over questions with both rows and several right
    answers, the last one over those with s > 0. A mean over nothing is 0. Equal rewards are no margin: a tie between
    right and wrong is wrong. The bootstrap draws questions.

    Source: allenai/reward-bench, utils.process_single_model and sample_stats.

    Args:
        rows: id, (k,) rewards with the right answers first, and how many are right.
        seed: of the bootstrap.
        resamples: how many samples.
    """
    kinds: dict[str, dict[int, _Prompt]] = {"ref": {}, "tied": {}}
    for name, rewards, correct in rows:
        kind, _, number = name.partition(":")
        kinds[kind][int(number)] = _prompt(rewards, correct)
    questions = sorted({*kinds["ref"], *kinds["tied"]})
    if not questions:
        return None
    values = np.array([_values(kinds["ref"].get(number), kinds["tied"].get(number)) for number in questions])
    value = float(_means(np.ones((1, len(questions))), values)[0] @ WEIGHTS)
    resampled = None
    if len(questions) > 1:
        share = np.full(len(questions), 1 / len(questions))
        draws = np.random.default_rng(seed).multinomial(len(questions), share, size=resamples)
        resampled = _means(draws.astype(np.float64), values) @ WEIGHTS
    return Score(value, resampled, len(rows))


def _prompt(rewards: Floats, correct: int) -> _Prompt:
    good, bad = rewards[:correct], rewards[correct:]
    margin = float(good.min() - bad.max())
    return _Prompt(margin > 0, margin, float(good.max() - good.min()) if correct > 1 else None)


def _values(ref: _Prompt | None, tied: _Prompt | None) -> list[float]:
    """What a question adds to each of the five means; NaN where it is not in that mean."""
    nothing = float("nan")
    values = [nothing if tied is None else float(tied.accurate), nothing if ref is None else float(ref.accurate)]
    if ref is None or tied is None or tied.spread is None:
        return [*values, nothing, nothing, nothing]
    both = min(ref.margin, tied.margin)
    far = tanh(both / tied.spread - 1) if tied.spread > 0 else nothing
    return [*values, float(tied.margin > tied.spread), float(both > tied.spread), far]


def _means(draws: Floats, values: Floats) -> Floats:
    """The five means (r, 5) of questions drawn so many times (r, q), values (q, 5) with NaN; 0 over nothing."""
    there = ~np.isnan(values)
    sums, counts = draws @ np.where(there, values, 0.0), draws @ there.astype(np.float64)
    return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
