"""From a suite's rows to the table of rewards that its rule takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aplot_lightning.data.comparisons import (
    Comparison,
    RowError,
    digest,
    first_user_turn,
    normalised_text,
    parse_comparison,
    prompt_key,
    response_text,
)
from aplot_lightning.data.comparisons.conversations import conversations_of
from aplot_lightning.data.sources import Source
from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.similarity import token_f1

CHUNK = 128  # comparisons that are encoded, sorted by length and scored together
MALFORMED = ("not_json", "missing_field")
STILL_SCORED = ("empty_response", "identical_responses")

Columns = dict[str, Any]
Rewards = list[float]


@dataclass
class Rows:
    """The comparisons of a suite.

    Attributes:
        comparisons: in the order of the files.
        left_out: how many rows are not among them, by reason.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def read_rows(source: Source) -> Rows:
    """Reads all rows of a suite.

    Other than in training, a row counts whatever it holds: an empty response is scored, and two equal ones are a tie.
    Only rows that rate all their responses the same have no pair, and are left out.

    Raises:
        UserError: the source cannot be read to its end, a row is malformed or another suite's (with its place), or
            there is no row.
    """
    rows = Rows()
    for where, row in source.rows():
        try:
            if isinstance(row, RowError):
                raise row
            rows.comparisons.append(_comparison(row, where, source.name))
        except RowError as error:
            if error.kind in MALFORMED:
                raise UserError(f"{where}: {error}") from error
            rows.left_out[error.kind] += 1
    if not rows.comparisons:
        raise UserError(f"{source} has no row that can be scored")
    return rows


def _comparison(row: Mapping[str, Any], where: str, name: str) -> Comparison:
    try:
        return parse_comparison(row, where, name)
    except RowError as error:
        if error.kind not in STILL_SCORED:
            raise
    many = "responses" in row
    sides = dict(enumerate(row["responses"])) if many else {side: row[side] for side in ("chosen", "rejected")}
    prompt, responses = conversations_of(row.get("prompt"), {str(side): value for side, value in sides.items()})
    places = range(len(responses))
    scores = tuple(map(float, row["scores"])) if many else (1.0, 0.0)
    return Comparison(
        prompt=prompt,
        responses=responses,
        pairs=tuple((one, other) for one in places for other in places if scores[one] > scores[other]),
        margin=None,
        target=None if many else row.get("target"),
        scores=None,
        source=name,
        subset=str(row.get("subset") or ""),
        id=str(row.get("id") or where),
        where=where,
    )


def scored(
    model: Any, comparisons: Sequence[Comparison], batch_size: int, advance: Callable[[int], None]
) -> Iterator[tuple[Comparison, Rewards | str]]:
    """Each comparison with the rewards of its responses, or why it has none.

    Args:
        model: a `RewardModel`.
        comparisons: what to score.
        batch_size: responses in one forward.
        advance: told how many comparisons are done.
    """
    for start in range(0, len(comparisons), CHUNK):
        chunk = comparisons[start : start + CHUNK]
        encoded = list(_encoded(model, chunk))
        # equal texts are scored once: rounding, which differs in a batch, shall not decide between them
        texts = {tokens.tobytes(): tokens for _, rows in encoded if not isinstance(rows, str) for tokens in rows}
        rewards = dict(zip(texts, model.score_rows([*texts.values()], batch_size=batch_size), strict=True))
        for comparison, rows in encoded:
            own: Rewards | str = rows if isinstance(rows, str) else [rewards[tokens.tobytes()] for tokens in rows]
            if not isinstance(own, str) and not np.isfinite(own).all():
                own = "a reward is not finite"
            yield comparison, own
        advance(len(chunk))


def _encoded(model: Any, comparisons: Sequence[Comparison]) -> Iterator[tuple[Comparison, list[Any] | str]]:
    """The tokens of every response; where a comparison cannot be encoded, the reason, and only for that one."""
    conversations = [each.prompt + response for each in comparisons for response in each.responses]
    try:
        tokens = iter(model.encode(conversations))
    except UserError as error:  # the chat template refuses a role, or a response does not fit
        if len(comparisons) == 1:
            yield comparisons[0], str(error)
            return
        middle = len(comparisons) // 2
        yield from _encoded(model, comparisons[:middle])
        yield from _encoded(model, comparisons[middle:])
        return
    for comparison in comparisons:
        yield comparison, [next(tokens) for _ in comparison.responses]


def pair_table(rows: Sequence[tuple[Comparison, Rewards]], *, by_question: bool = False) -> Columns:
    """A row a pair, in the columns of a run's predictions/*.parquet, (n,) each.

    Args:
        rows: comparisons with the rewards of their responses.
        by_question: the prompt is the first user turn alone, so that conversations that go on in different ways are
            one cluster of the bootstrap.
    """
    table: dict[str, list[Any]] = {name: [] for name in PAIR_COLUMNS}
    for comparison, rewards in rows:
        texts = [response_text(comparison, place) for place in range(len(comparison.responses))]
        for winner, loser in comparison.pairs:
            several = len(comparison.pairs) > 1
            values = (
                f"{comparison.id}:{winner}>{loser}" if several else comparison.id,
                _prompt(comparison, by_question),
                comparison.subset,
                rewards[winner],
                rewards[loser],
                1.0 if comparison.target is None else float(comparison.target),
                token_f1(texts[winner], texts[loser]),
                len(texts[winner]),
                len(texts[loser]),
            )
            for name, value in zip(table, values, strict=True):
                table[name].append(value)
    return {name: np.asarray(column, dtype=PAIR_COLUMNS[name]) for name, column in table.items()}


PAIR_COLUMNS: dict[str, Any] = {
    "id": object,
    "prompt": np.int64,
    "subset": object,
    "chosen_reward": np.float64,
    "rejected_reward": np.float64,
    "target": np.float64,
    "similarity": np.float64,
    "chosen_characters": np.int64,
    "rejected_characters": np.int64,
}


def prompt_table(rows: Sequence[tuple[Comparison, Rewards]]) -> Columns:
    """A row a prompt: id, prompt (int64), subset, rewards (right responses first), correct (how many are right)."""
    return {
        "id": [comparison.id for comparison, _ in rows],
        "prompt": np.asarray([_prompt(comparison) for comparison, _ in rows], dtype=np.int64),
        "subset": [comparison.subset for comparison, _ in rows],
        "rewards": [rewards for _, rewards in rows],
        "correct": np.asarray([len({winner for winner, _ in comparison.pairs}) for comparison, _ in rows]),
    }


def _prompt(comparison: Comparison, by_question: bool = False) -> int:
    """The hash of a prompt as runs write it: the first bytes of its key."""
    key = digest(normalised_text(first_user_turn(comparison))) if by_question else prompt_key(comparison)
    return int.from_bytes(key[:8], "big", signed=True)
