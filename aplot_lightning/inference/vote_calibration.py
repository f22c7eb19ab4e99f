"""What the weighted votes learn from labelled scores: the scale of the rewards, b, the densities, and q."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aplot_lightning.errors import UserError
from aplot_lightning.inference.votes import (
    AS_IT_IS,
    Ballot,
    Bools,
    Floats,
    Scale,
    Vote,
    Weighting,
    logit,
    share_right,
    sigmoid,
    tally,
)

CALIBRATED: tuple[Vote, ...] = get_args(Vote)[3:]  # linear, logit, density
RATIO_LIMIT = 20.0  # of a log density ratio: beyond, both densities are the tails of their kernels
GRIDS = {"logit": np.linspace(0.01, 0.99, 99), "linear": np.linspace(-1.0, 1.0, 201)}  # where b is searched


def labelled_samples(ballots: Sequence[Ballot]) -> tuple[Floats, Bools]:
    """Rewards (k,) and whether right (k,) of every labelled sample that has an answer.

    Raises:
        UserError: fewer than 2 are right, or fewer than 2 wrong.
    """
    labelled = [ballot for ballot in ballots if ballot.right is not None]
    given = [ballot.codes >= 0 for ballot in labelled]
    rewards = [ballot.rewards[mask] for ballot, mask in zip(labelled, given, strict=True)]
    right = [ballot.sample_right[mask] for ballot, mask in zip(labelled, given, strict=True)]
    marks = np.concatenate([*right, np.zeros(0, dtype=bool)])
    for kind, count in {"right": int(marks.sum()), "wrong": int((~marks).sum())}.items():
        if count < 2:
            raise UserError(
                f"--calibration: {count} of {marks.size} labelled samples are {kind}, and at least 2 are needed: "
                "give more rows"
            )
    return np.concatenate([*rewards, np.zeros(0)]), marks


def fit_scale(rewards: ArrayLike, right: ArrayLike) -> Scale:
    """Platt's estimate of P(right given reward): the logistic regression of right on reward, by maximum likelihood.

    Targets are Platt's (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2), so that separable samples have a finite fit.

    Args:
        rewards: (k,).
        right: (k,) bool, both kinds present.
    """
    from scipy.optimize import minimize

    values, marks = np.asarray(rewards, dtype=np.float64), np.asarray(right, dtype=bool)
    mean, spread = values.mean(), values.std() or 1.0
    inputs = (values - mean) / spread
    targets = np.where(marks, (marks.sum() + 1.0) / (marks.sum() + 2.0), 1.0 / ((~marks).sum() + 2.0))

    def loss(line: Floats) -> tuple[float, Floats]:
        logits = line[0] * inputs + line[1]
        slopes = sigmoid(logits) - targets
        value = np.logaddexp(0.0, logits) - targets * logits
        return float(value.mean()), np.array([(slopes * inputs).mean(), slopes.mean()])

    slope, offset = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return Scale(float(slope / spread), float(offset - slope * mean / spread))


def calibrate(vote: Vote, ballots: Sequence[Ballot], scale: Scale = AS_IT_IS, choices: int | None = None) -> Weighting:
    """The weighting of `vote` from labelled samples.

    ``density`` looks at (reward, right) alone. b of ``logit`` and ``linear`` is the one whose votes are right most
    often, of 0.01, 0.02 ... 0.99 and of -1, -0.99 ... 1, and the middle one of several.

    Args:
        vote: one of the forms; those that need no calibration come back as they are.
        ballots: prompts with `right`; others are passed over.
        scale: how rewards become p.
        choices: m where it is known.

    Raises:
        UserError: too few right or wrong samples; for ``logit`` and ``linear``, no prompt with two different answers.
    """
    if vote not in CALIBRATED:
        return Weighting(vote, scale)
    rewards, right = labelled_samples(ballots)
    if vote == "density":
        return Weighting(vote, scale, log_ratio=density_ratio(scale(rewards), right), accuracy=float(right.mean()))
    contested = [ballot for ballot in ballots if ballot.right is not None and len(ballot.answers) > 1]
    if not contested:
        raise UserError(
            f"--calibration: b of the {vote} vote is searched over prompts whose samples give different answers, and "
            "no labelled row is one: give rows of several responses with their answers, or take --vote density"
        )
    grid = GRIDS[vote]
    shares = np.mean([_shares_on_grid(ballot, vote, scale, grid, choices) for ballot in contested], axis=0)
    best = np.flatnonzero(shares >= shares.max() - 1e-12)
    return Weighting(vote, scale, float(grid[best[(len(best) - 1) // 2]]))


def _shares_on_grid(ballot: Ballot, vote: Vote, scale: Scale, grid: Floats, choices: int | None) -> Floats:
    """(grid,) whether the vote is right under every b: as b grows, an answer loses in proportion to its samples."""
    assert ballot.right is not None
    codes, kinds = ballot.codes[None], len(ballot.answers)
    middle = 0.5 if vote == "logit" else 0.0
    totals = tally(codes, ballot.rewards[None], kinds, Weighting(vote, scale, middle), choices)
    counts = tally(codes, ballot.rewards[None], kinds, Weighting("majority"), choices)
    costs = logit(grid) if vote == "logit" else grid
    return share_right(totals - counts * costs[:, None], ballot.right)


def density_ratio(p: Floats, right: NDArray[np.bool_]) -> Callable[[Floats], Floats]:
    """log f(p given right) - log f(p given wrong), both by a Gaussian kernel estimate of logit p with Scott's width.

    The estimates are over logits; the ratio is the same as that over p. It is held within ±20, and a kind whose scores
    are all the same gets a spread of 1e-3.

    Args:
        p: (k,) in [0, 1].
        right: (k,) bool, at least 2 of each kind.
    """
    from scipy.stats import gaussian_kde

    def estimate(values: Floats) -> gaussian_kde:
        return gaussian_kde(values + 1e-3 * np.resize([-1.0, 1.0], values.size) if np.ptp(values) < 1e-9 else values)

    logits = logit(p)
    of_right, of_wrong = estimate(logits[right]), estimate(logits[~right])

    def log_ratio(values: Floats) -> Floats:
        flat = logit(values).ravel()
        with np.errstate(invalid="ignore"):
            ratio = of_right.logpdf(flat) - of_wrong.logpdf(flat)
        ratio = np.where(np.isnan(ratio), 0.0, ratio)  # both have underflown: nothing is known there
        return np.clip(ratio, -RATIO_LIMIT, RATIO_LIMIT).reshape(np.shape(values))

    return log_ratio
