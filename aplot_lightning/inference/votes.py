"""Votes over sampled answers: which answer do n samples and their rewards speak for (2510.13918).

Every form gives a sample a weight and an answer the sum of its samples' weights. With q the generator's accuracy, m the
number of distinct answers and wrong answers equally likely, the sum of

    w_i = log[f(p_i given right) / f(p_i given wrong)] + log[q (m - 1) / (1 - q)]

is the log posterior of an answer up to a constant, so its maximum is Bayes-optimal (`density`); the other forms stand
in for it. Weights may be negative: a sample that is probably wrong speaks against its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vote = Literal["majority", "best", "raw", "linear", "logit", "density"]
VOTES: tuple[Vote, ...] = get_args(Vote)
Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
Bools = NDArray[np.bool_]

CLAMP = 1e-6  # probabilities are kept this far from 0 and 1 before their logit is taken
NO_ANSWER = -1


@dataclass(frozen=True, eq=False)
class Ballot:
    """The samples of one prompt.

    Attributes:
        answers: the distinct answers, in the order in which they first occur.
        codes: (n,) int64, each sample's place in `answers`; -1 where it has no answer and so no vote.
        rewards: (n,) float64.
        right: which of `answers` are right, (answers,) bool; None where nobody says.
    """

    answers: tuple[str, ...]
    codes: Whole
    rewards: Floats
    right: Bools | None = None

    @staticmethod
    def of(answers: Sequence[str | None], rewards: ArrayLike, correct: str | Sequence[bool] | None = None) -> Ballot:
        """A ballot of one answer (None: it has none) and one reward a sample.

        Args:
            answers: n answers; two are the same where their texts are, white space around them apart.
            rewards: (n,).
            correct: the right answer, which need not be among them, or whether each sample is right.

        Raises:
            ValueError: the lengths differ, or an answer is marked right and wrong.
        """
        texts = [None if answer is None else answer.strip() for answer in answers]
        distinct = tuple(dict.fromkeys(text for text in texts if text is not None))
        place = {text: code for code, text in enumerate(distinct)}
        codes = np.array([NO_ANSWER if text is None else place[text] for text in texts], dtype=np.int64)
        values = np.asarray(rewards, dtype=np.float64)
        if values.shape != codes.shape:
            raise ValueError(f"{values.size} rewards for {codes.size} answers")
        return Ballot(distinct, codes, values, None if correct is None else _right(distinct, codes, correct))

    @property
    def sample_right(self) -> Bools:
        """(n,) bool, whether each sample's answer is right; one without an answer is wrong."""
        assert self.right is not None
        return np.append(self.right, False)[self.codes]


def _right(distinct: Sequence[str], codes: Whole, correct: str | Sequence[bool]) -> Bools:
    if isinstance(correct, str):
        return np.array([answer == correct.strip() for answer in distinct], dtype=bool)
    marks = np.asarray(correct, dtype=bool)
    if marks.shape != codes.shape:
        raise ValueError(f"{marks.size} marks for {codes.size} answers")
    right = np.zeros(len(distinct), dtype=bool)
    for code, answer in enumerate(distinct):
        of_answer = marks[codes == code]
        if of_answer.any() != of_answer.all():
            raise ValueError(f"the answer {answer!r} is marked right and wrong")
        right[code] = bool(of_answer[0])
    return right


@dataclass(frozen=True)
class Scale:
    """How a reward becomes a number p in [0, 1]: as it is, or sigmoid(slope * reward + offset).

    Attributes:
        slope: 0 leaves rewards as they are.
        offset: added before the sigmoid.
    """

    slope: float = 0.0
    offset: float = 0.0

    def __call__(self, rewards: ArrayLike) -> Floats:
        values = np.asarray(rewards, dtype=np.float64)
        return sigmoid(self.slope * values + self.offset) if self.slope else values

    def __str__(self) -> str:
        return f"sigmoid({self.slope:.4g} reward {self.offset:+.4g})" if self.slope else "the reward as it is"


AS_IT_IS = Scale()


@dataclass(frozen=True)
class Weighting:
    """One form of vote, calibrated where it needs to be (vote_calibration.py).

    Attributes:
        vote: its name.
        scale: how rewards become p.
        threshold: b of ``linear`` and ``logit``.
        log_ratio: of ``density``: p -> log f(p given right) - log f(p given wrong), of the same shape.
        accuracy: q of ``density``, the share of samples that are right.
    """

    vote: Vote
    scale: Scale = AS_IT_IS
    threshold: float = 0.0
    log_ratio: Callable[[Floats], Floats] | None = None
    accuracy: float = 0.5

    def base(self, rewards: ArrayLike) -> Floats:
        """Weights without the term of the number of answers, of the rewards' shape; for ``best`` the rewards."""
        values = np.asarray(rewards, dtype=np.float64)
        if self.vote == "majority":
            return np.ones_like(values)
        if self.vote == "best":
            return values
        p = self.scale(values)
        if self.vote == "raw":
            return p
        if self.vote == "linear":
            return p - self.threshold
        if self.vote == "logit":
            return logit(p) - logit(self.threshold)
        assert self.log_ratio is not None
        return self.log_ratio(p)

    def answers_term(self, distinct: ArrayLike) -> Floats:
        """What every weight gets beside `base`: log[q (m - 1) / (1 - q)] for ``density``, 0 for the others.

        With m = 1 there is nothing to choose between, and m = 2 stands in for it.
        """
        m = np.maximum(np.asarray(distinct, dtype=np.float64), 2.0)
        if self.vote != "density":
            return np.zeros_like(m)
        return np.log(m - 1.0) + logit(self.accuracy)


def logit(p: ArrayLike) -> Floats:
    """log p - log(1 - p), p kept within [1e-6, 1 - 1e-6]."""
    clamped = np.clip(np.asarray(p, dtype=np.float64), CLAMP, 1.0 - CLAMP)
    return np.log(clamped) - np.log1p(-clamped)


def sigmoid(values: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def tally(codes: Whole, rewards: ArrayLike, kinds: int, weighting: Weighting, choices: int | None = None) -> Floats:
    """What every answer gets, in d votes at once: (d, kinds), -inf for an answer that no sample gives.

    Args:
        codes: (d, n) int64, the samples' answers, -1 for none.
        rewards: (d, n).
        kinds: number of different answers, the largest code plus 1.
        weighting: the form of vote; for ``best`` an answer gets the largest reward among its samples.
        choices: m where it is known, such as 4 options; None for the distinct answers of each of the d votes.
    """
    return tally_weights(codes, weighting.base(rewards), kinds, weighting, choices)


def tally_weights(codes: Whole, base: Floats, kinds: int, weighting: Weighting, choices: int | None = None) -> Floats:
    """`tally` of weights (d, n) that `Weighting.base` gave before."""
    shape = (len(codes), kinds + 1)  # the last column takes the samples without an answer
    cells = np.where(codes < 0, kinds, codes) + (kinds + 1) * np.arange(len(codes))[:, None]
    if weighting.vote == "best":
        most = np.full(shape, -np.inf)
        np.maximum.at(most.reshape(-1), cells, base)
        return most[:, :kinds]
    given = np.bincount(cells.ravel(), minlength=shape[0] * shape[1]).reshape(shape)[:, :kinds]
    sums = np.bincount(cells.ravel(), weights=base.ravel(), minlength=shape[0] * shape[1]).reshape(shape)[:, :kinds]
    distinct = (given > 0).sum(axis=1) if choices is None else np.full(len(codes), choices)
    return np.where(given > 0, sums + given * weighting.answers_term(distinct)[:, None], -np.inf)


def leaders(totals: Floats) -> Bools:
    """Which answers have the most, (d, kinds) bool; several where they tie, none in a vote without answers.

    Sums of the same weights in another order differ by rounding, so 1e-9 apart is a tie.
    """
    most = totals.max(axis=1, keepdims=True, initial=-np.inf)
    slack = 1e-9 * np.maximum(1.0, np.abs(np.where(np.isfinite(most), most, 0.0)))
    return np.isfinite(totals) & (totals >= most - slack)


def share_right(totals: Floats, right: Bools) -> Floats:
    """(d,) the probability that a leader drawn by lot is right: 1 or 0, and a share where right and wrong ones tie."""
    leading = leaders(totals)
    return (leading & right).sum(axis=1) / np.maximum(leading.sum(axis=1), 1)


@dataclass(frozen=True)
class Outcome:
    """Who won.

    Attributes:
        answer: of the leading answers the one that was sampled first.
        tied: all leading answers, in the order in which they were sampled; one where there is no tie.
        totals: what every answer got.
    """

    answer: str
    tied: tuple[str, ...]
    totals: dict[str, float]


def hold_vote(ballot: Ballot, weighting: Weighting, choices: int | None = None) -> Outcome | None:
    """The outcome of one vote; None where no sample has an answer. See `tally` for the arguments."""
    if not ballot.answers:
        return None
    totals = tally(ballot.codes[None], ballot.rewards[None], len(ballot.answers), weighting, choices)
    tied = tuple(ballot.answers[place] for place in np.flatnonzero(leaders(totals)[0]))
    return Outcome(tied[0], tied, dict(zip(ballot.answers, totals[0].tolist(), strict=True)))
