"""From the rows of a source to comparisons, each row accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from aplot_lightning.data.comparisons import Comparison, RowError, digest, parse_comparison
from aplot_lightning.data.report import SourceLedger
from aplot_lightning.data.sources.source import GIVE_A_FILE, Row, Source
from aplot_lightning.errors import UserError


def read_comparisons(
    source: Source, *, key: str, ledger: SourceLedger, on_bad_row: Literal["skip", "error"] = "skip"
) -> list[Comparison]:
    """Reads a source to its end; each row becomes a comparison or is counted as refused.

    Two rows contradict each other when, for the same prompt, one prefers a response that the other rejects in favour of
    the same counterpart; both are refused. A row with the prompt and the pairs of an earlier one is a duplicate.

    Args:
        source: yields the rows.
        key: the config key for messages.
        ledger: the source's account: read and refused are counted here, what is used only when it has been encoded.
        on_bad_row: ``skip`` and count bad rows, or stop at one (``error``).

    Raises:
        UserError: the source cannot be read, has no row, or none that can be used; with ``error`` also any bad row.
    """

    def refuse(kind: str, where: str, message: str) -> None:
        if on_bad_row == "error":
            raise UserError(
                f"{key}: {where}: {message} ({kind}): mend or remove this row of {source}, "
                "or set data.on_bad_row to skip"
            )
        ledger.refuse(kind, where, message)

    comparisons = []
    for where, row in _rows(source, key):
        ledger.read += 1
        try:
            if isinstance(row, RowError):
                raise row
            comparisons.append(parse_comparison(row, where, source.name))
        except RowError as error:
            refuse(error.kind, where, str(error))
    if not ledger.read:
        raise UserError(f"{key}: {str(source)!r} has no rows: {GIVE_A_FILE} with at least one")
    kept = _without_conflicts(comparisons, refuse)
    if not kept:
        raise UserError(f"{key}: none of the {ledger.read} rows of {str(source)!r} can be used ({ledger.reasons()})")
    return kept


def _rows(source: Source, key: str) -> Iterator[Row]:
    rows = iter(source.rows())
    while True:
        try:
            row = next(rows, None)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        if row is None:
            return
        yield row


def _without_conflicts(comparisons: list[Comparison], refuse: Callable[[str, str, str], None]) -> list[Comparison]:
    """The comparisons that contradict none and repeat none before them; the others go to `refuse`."""
    orders, rows = [], []  # digests of each comparison's pairs as (preferred, other); and of the row as a whole
    first: dict[bytes, int] = {}
    for place, comparison in enumerate(comparisons):
        preferred, row = _digests(comparison)
        orders.append(preferred)
        rows.append(row)
        for this, _ in preferred:
            first.setdefault(this, place)
    kept: list[Comparison] = []
    earlier: dict[bytes, str] = {}
    for comparison, preferred, row in zip(comparisons, orders, rows, strict=True):
        against = next((first[opposite] for _, opposite in preferred if opposite in first), None)
        if against is not None:
            refuse("contradiction", comparison.where, f"prefers the opposite of {comparisons[against].where}")
        elif row in earlier:
            refuse("duplicate", comparison.where, f"the same as {earlier[row]}")
        else:
            earlier[row] = comparison.where
            kept.append(comparison)
    return kept


def _digests(comparison: Comparison) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """For each pair a digest of its order and one of the opposite order, and a digest of all pairs as they are listed.

    A target below one half prefers the response that is listed as rejected; one half prefers neither.
    """
    prompt, *responses = (
        digest(*(text for message in messages for text in message.values()))
        for messages in (comparison.prompt, *comparison.responses)
    )
    ordered = [
        (prompt + responses[winner] + responses[loser], prompt + responses[loser] + responses[winner])
        for winner, loser in comparison.pairs
    ]
    listed = ordered[0][0] if len(ordered) == 1 else digest(*sorted(order for order, _ in ordered))
    if comparison.target is None or comparison.target > 0.5:
        return ordered, listed
    return [] if comparison.target == 0.5 else [(opposite, order) for order, opposite in ordered], listed
