"""`aggregate`: the answer that scored samples vote for, with weights, and how often such votes are right.

The input is read twice: once for the votes, of which only answers and rewards are kept, and once to be written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.sources import Source, open_source
from aplot_lightning.errors import UserError
from aplot_lightning.inference.output import check_output, json_line, replacing

if TYPE_CHECKING:
    from aplot_lightning.inference.vote_curve import Point
    from aplot_lightning.inference.votes import Ballot, Scale, Weighting

Vote = Literal["majority", "best", "raw", "linear", "logit", "density"]
NEED_CALIBRATION = ("linear", "logit", "density")


def main(
    input: str,
    output: str,
    vote: Vote = "majority",
    calibration: str | None = None,
    answer_pattern: str | None = None,
    scale: Literal["auto", "none", "sigmoid", "platt"] = "auto",
    choices: int | None = None,
    draws: int = 64,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Holds a vote among the samples of each prompt.

    The output holds the input rows in their order with voted_answer, tied (the leading answers where there are several:
    the one sampled first is taken) and votes (what each answer got). A row that cannot be used gets null and a warning.
    Where rows hold the right answer, a table shows the accuracy of every form against the number of samples: mean over
    random nested subsets, ties by lot, 95 % intervals over prompts.

    Args:
        input: Rows of {"answers", "rewards"}, or of {"responses", "rewards"} as score writes them, with
            answer_pattern; optionally the right answer as "correct" or "answer". JSONL, JSONL.gz or Parquet.
        output: Where to write, JSONL or JSONL.gz.
        vote: majority counts samples; best takes the answer of the largest reward; raw sums p; linear p - b; logit
            logit(p) - logit(b); density log f(p | right) - log f(p | wrong) + log(q (m - 1) / (1 - q)).
        calibration: Labelled rows that b, the densities and q are taken from: like those of the input with the right
            answer, or {"reward", "right": true or false}, of which density is content.
        answer_pattern: A regular expression; the last match in a response is its answer, the first group of it where
            there is one. A response without a match has no vote.
        scale: How rewards become p in [0, 1]. none takes them as they are, sigmoid their sigmoid, platt a logistic
            regression on the calibration rows. auto is none where all lie in [0, 1], else platt, or sigmoid without
            calibration.
        choices: Number of possible answers m where it is known; the distinct ones of the prompt if not given.
        draws: Random subsets a prompt and size in the table.
        seed: Of the draws.
        overwrite: Replace an output that exists.
    """
    pattern = _check(vote, calibration, answer_pattern, scale, choices, draws)
    path = check_output(output, overwrite, {"--input": input, "--calibration": calibration})
    source = open_source(input, "--input")
    ballots = list(_ballots(source, pattern))
    usable = [ballot for ballot in ballots if ballot is not None]
    if not any(ballot.answers for ballot in usable):
        raise UserError(f"--input: {input} holds no row with answers and rewards; nothing was written")
    labelled = None if calibration is None else _labelled(calibration, pattern)
    weightings = _weightings(vote, usable, labelled, scale, choices)
    _write(path, source, ballots, weightings[vote], choices)
    _say(input, output, ballots, weightings[vote])
    if any(ballot.right is not None for ballot in usable):
        if calibration is not None and Path(calibration).resolve() == Path(input).resolve():
            print("warning: the table is over the very rows that calibrated it", file=sys.stderr)
        _table(usable, weightings, choices, draws, seed)


def _check(
    vote: str, calibration: str | None, answer_pattern: str | None, scale: str, choices: int | None, draws: int
) -> re.Pattern[str] | None:
    """The mistakes that can be told before anything is read; the compiled pattern."""
    if vote in NEED_CALIBRATION and calibration is None:
        raise UserError(f"--vote {vote} needs --calibration: rows whose answers are known to be right or wrong")
    if scale == "platt" and calibration is None:
        raise UserError("--scale platt needs --calibration: rows whose answers are known to be right or wrong")
    for name, value, least in (("choices", choices, 2), ("draws", draws, 1)):
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}: it must be at least {least}")
    try:
        return None if answer_pattern is None else re.compile(answer_pattern)
    except re.error as error:
        raise UserError(f"--answer_pattern: {answer_pattern!r} is no regular expression: {error}") from error


def _ballots(source: Source, pattern: re.Pattern[str] | None) -> Iterator[Ballot | None]:
    """The ballot of every row; None with a warning where there is none."""
    from aplot_lightning.inference.samples import ballot_of

    for where, row in source.rows():
        try:
            yield ballot_of(row, pattern)
        except RowError as error:
            print(f"warning: {where}: {error}; it is not voted on", file=sys.stderr)
            yield None


def _labelled(calibration: str, pattern: re.Pattern[str] | None) -> list[Ballot]:
    ballots = [ballot for ballot in _ballots(open_source(calibration, "--calibration"), pattern) if ballot is not None]
    if not any(ballot.right is not None for ballot in ballots):
        raise UserError(
            f'--calibration: {calibration} holds no usable row that says what is right: add "correct" (the answer, or '
            'true and false for each response), or give rows of {"reward", "right"}'
        )
    return ballots


def _weightings(
    vote: str, ballots: Sequence[Ballot], labelled: Sequence[Ballot] | None, scale: str, choices: int | None
) -> dict[str, Weighting]:
    """Every form of vote that can be held; where `vote` itself cannot be calibrated, that is the user's mistake."""
    from aplot_lightning.inference.vote_calibration import CALIBRATED, calibrate
    from aplot_lightning.inference.votes import VOTES, Weighting

    chosen = _scale(ballots, labelled, scale)
    found: dict[str, Weighting] = {}
    for name in VOTES:
        if name not in CALIBRATED:
            found[name] = Weighting(name, chosen)
        elif labelled is not None:
            try:
                found[name] = calibrate(name, labelled, chosen, choices)
            except UserError:
                if name == vote:
                    raise
    return found


def _scale(ballots: Sequence[Ballot], labelled: Sequence[Ballot] | None, scale: str) -> Scale:
    from aplot_lightning.inference.vote_calibration import fit_scale, labelled_samples
    from aplot_lightning.inference.votes import Scale

    inside = all(((b.rewards >= 0) & (b.rewards <= 1)).all() for b in [*ballots, *(labelled or [])])
    if scale == "auto":
        scale = "none" if inside else "sigmoid" if labelled is None else "platt"
    if scale == "none" and not inside and labelled is not None:
        raise UserError("--scale none: not all rewards lie in [0, 1]: take platt or sigmoid")
    if scale == "platt":
        assert labelled is not None
        return fit_scale(*labelled_samples(labelled))
    return Scale(1.0) if scale == "sigmoid" else Scale()


def _write(
    path: Path, source: Source, ballots: Sequence[Ballot | None], weighting: Weighting, choices: int | None
) -> None:
    from aplot_lightning.inference.votes import hold_vote

    with replacing(path) as file:
        for (_, row), ballot in zip(source.rows(), ballots, strict=True):
            outcome = None if ballot is None else hold_vote(ballot, weighting, choices)
            added: dict[str, Any] = {"voted_answer": None, "tied": None, "votes": None}
            if outcome is not None:
                tied = list(outcome.tied) if len(outcome.tied) > 1 else []
                added = {"voted_answer": outcome.answer, "tied": tied, "votes": outcome.totals}
            file.write(json_line({**(row if isinstance(row, Mapping) else {}), **added}))


def _say(input: str, output: str, ballots: Sequence[Ballot | None], weighting: Weighting) -> None:
    unusable = sum(ballot is None for ballot in ballots)
    silent = sum(ballot is not None and not ballot.answers for ballot in ballots)
    if unusable or silent:
        print(
            f"warning: {unusable + silent} of {len(ballots)} rows of {input} have no vote, {silent} of them because no "
            "sample has an answer",
            file=sys.stderr,
        )
    details = f", p = {weighting.scale}" if weighting.vote not in ("majority", "best") else ""
    if weighting.vote in ("linear", "logit"):
        details += f", b = {weighting.threshold:.3g}"
    if weighting.vote == "density":
        details += f", q = {weighting.accuracy:.3f}"
    print(f"voted on {len(ballots) - unusable - silent} rows ({weighting.vote}{details}): {output}")


def _table(
    ballots: Sequence[Ballot], weightings: Mapping[str, Weighting], choices: int | None, draws: int, seed: int
) -> None:
    """Prints accuracy against the number of samples."""
    from aplot_lightning.inference.vote_curve import vote_curves

    curves = vote_curves(ballots, weightings, choices=choices, draws=draws, seed=seed)
    print(f"\n| n | prompts | {' | '.join(curves)} |")
    print("|--:|--:|" + "--:|" * len(curves))
    for points in zip(*curves.values(), strict=True):
        print(f"| {points[0].samples} | {points[0].prompts} | {' | '.join(map(_cell, points))} |")


def _cell(point: Point) -> str:
    if point.interval is None:
        return f"{point.accuracy:.3f}"
    return f"{point.accuracy:.3f} [{point.interval[0]:.3f}, {point.interval[1]:.3f}]"
