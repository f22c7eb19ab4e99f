"""What happened to every row: each row that was read is used, or refused under exactly one kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from aplot_lightning.data.comparisons import KINDS, Comparison, response_text

LOCATIONS = 10  # places kept of each kind


class SourceLedger:
    """The account of one source, or of several together.

    Attributes:
        name: the source's name.
        read: rows read; blank lines are none.
        refused: kind -> rows refused, every kind of `KINDS`.
        locations: kind -> the first ten (where, message).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.read = 0
        self.refused = dict.fromkeys(KINDS, 0)
        self.locations: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
        self._counted = 0
        self._pairs = 0
        self._longer_wins = 0
        self._lengths: list[np.ndarray] = []

    @property
    def used(self) -> int:
        """Rows read and not refused so far."""
        return self.read - sum(self.refused.values())

    def refuse(self, kind: str, where: str, message: str) -> None:
        """Counts one row as refused; `kind` is one of `KINDS`."""
        self.refused[kind] += 1
        if len(self.locations[kind]) < LOCATIONS:
            self.locations[kind].append((where, message))

    def use(self, comparisons: Iterable[Comparison], lengths: Sequence[int] | np.ndarray) -> None:
        """Counts comparisons that are used in the end, held-out ones too; may be called once for each part of a source.

        Args:
            comparisons: those that were not refused, neither in reading nor in encoding.
            lengths: (C,) tokens of the longest conversation of each.
        """
        counted = 0
        for comparison in comparisons:
            counted += 1
            characters = [len(response_text(comparison, place)) for place in range(len(comparison.responses))]
            self._pairs += len(comparison.pairs)
            self._longer_wins += sum(characters[winner] > characters[loser] for winner, loser in comparison.pairs)
        assert counted == len(lengths), f"{counted} comparisons of {self.name} and {len(lengths)} lengths"
        self._counted += counted
        self._lengths.append(np.asarray(lengths, dtype=np.int64))

    def reasons(self) -> str:
        """The refused rows in one line, for messages: ``12 missing_field, 1 tie; first: x.jsonl:1: no "chosen"``."""
        kinds = [kind for kind in KINDS if self.refused[kind]]
        if not kinds:
            return "no row was refused"
        where, message = self.locations[kinds[0]][0]
        return f"{', '.join(f'{self.refused[kind]} {kind}' for kind in kinds)}; first: {where}: {message}"

    def as_dict(self) -> dict[str, Any]:
        """The account in the form of ``data_report.json``; ``near_leak`` is null: it is not counted in this version.

        ``longer_wins`` is the share of pairs whose winner has more characters; it and the token counts are null without
        a used row.
        """
        assert self._counted == self.used, (
            f"{self.name}: {self.read} rows read, {sum(self.refused.values())} refused, {self._counted} counted as used"
        )
        return {
            "read": self.read,
            "used": self.used,
            "pairs": self._pairs,
            "refused": dict(self.refused),
            "near_leak": None,
            "longer_wins": self._longer_wins / self._pairs if self._pairs else None,
            "tokens": self._tokens(),
        }

    def _tokens(self) -> dict[str, int | None]:
        lengths = np.concatenate([np.zeros(0, dtype=np.int64), *self._lengths])
        if not len(lengths):
            return {"p50": None, "p95": None, "max": None}
        p50, p95, most = np.percentile(lengths, [50, 95, 100], method="inverted_cdf")
        return {"p50": int(p50), "p95": int(p95), "max": int(most)}

    @staticmethod
    def total(ledgers: Iterable[SourceLedger]) -> SourceLedger:
        """The account of several sources together."""
        total = SourceLedger("total")
        for ledger in ledgers:
            total.read += ledger.read
            for kind in KINDS:
                total.refused[kind] += ledger.refused[kind]
                total.locations[kind] = (total.locations[kind] + ledger.locations[kind])[:LOCATIONS]
            total._counted += ledger._counted
            total._pairs += ledger._pairs
            total._longer_wins += ledger._longer_wins
            total._lengths += ledger._lengths
        return total


class DataReport:
    """The accounts of all sources of a run, each under its place in ``data_report.json``.

    Places are ``("train",)`` (one or more sources), ``("validation",)`` and ``("id",)`` (one each), ``("ood", NAME)``
    and ``("ood_validation", NAME)``. Rows of a training source that are held out for ``validation`` or ``id`` count as
    used in ``train``; an account of their own may hold these rows once more.
    """

    def __init__(self) -> None:
        self._ledgers: dict[tuple[str, ...], list[SourceLedger]] = {}

    def ledger(self, place: tuple[str, ...], name: str) -> SourceLedger:
        """A new account of the source `name` in a place. Raises ValueError where there is no such place, or no room."""
        single, named = place in {("train",), ("validation",), ("id",)}, place[0] in {"ood", "ood_validation"}
        if not single and not (named and len(place) == 2):
            raise ValueError(f"the data report has no place {place}")
        there = self._ledgers.setdefault(place, [])
        if there and (place != ("train",) or name in {ledger.name for ledger in there}):
            raise ValueError(f"the data report has an account of {there[0].name!r} in its place {place} already")
        there.append(SourceLedger(name))
        return there[-1]

    def as_dict(self) -> dict[str, Any]:
        """The content of ``data_report.json``: every account, and under ``locations`` the first rows refused.

        A set that the run does not have is null (``validation``, ``id``) or not among the names (``ood`` ...).
        """
        training = self._ledgers.get(("train",), [])
        return {
            "train": {
                "total": SourceLedger.total(training).as_dict(),
                "sources": {ledger.name: ledger.as_dict() for ledger in training},
            },
            "validation": self._only(("validation",)),
            "id": self._only(("id",)),
            "ood": self._named("ood"),
            "ood_validation": self._named("ood_validation"),
            "locations": {
                "/".join(place): {
                    kind: [{"where": where, "message": message} for where, message in found]
                    for kind, found in SourceLedger.total(ledgers).locations.items()
                    if found
                }
                for place, ledgers in self._ledgers.items()
            },
        }

    def to_text(self) -> str:
        """A table for the terminal: a line for each account, and under it what was refused and where first."""
        rows: list[tuple[str, ...]] = [
            ("set", "source", "read", "used", "pairs", "longer wins", "tokens p50", "p95", "max")
        ]
        notes: list[list[str]] = [[]]
        for place, ledgers in self._ledgers.items():
            for ledger in ledgers:
                rows.append(_table_row("/".join(place), ledger))
                notes.append(_refusals(ledger))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row, found in zip(rows, notes, strict=True):
            texts = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
            lines += ["  ".join([*texts, *numbers]), *found]
        return "\n".join(lines)

    def _only(self, place: tuple[str, ...]) -> dict[str, Any] | None:
        ledgers = self._ledgers.get(place)
        return ledgers[0].as_dict() if ledgers else None

    def _named(self, section: str) -> dict[str, Any]:
        return {place[1]: self._only(place) for place in self._ledgers if place[0] == section}


def _table_row(place: str, ledger: SourceLedger) -> tuple[str, ...]:
    account = ledger.as_dict()
    share = account["longer_wins"]
    tokens = ["-" if value is None else f"{value:,}" for value in account["tokens"].values()]
    counts = [f"{account[name]:,}" for name in ("read", "used", "pairs")]
    return place, ledger.name, *counts, "-" if share is None else f"{share:.2f}", *tokens


def _refusals(ledger: SourceLedger) -> list[str]:
    lines = []
    for kind in KINDS:
        if ledger.refused[kind]:
            (where, message), *others = ledger.locations[kind]
            also = f"; also {', '.join(other for other, _ in others)}" if others else ""
            more = " ..." if ledger.refused[kind] > LOCATIONS else ""
            lines.append(f"    refused {ledger.refused[kind]:,} {kind}: {where}: {message}{also}{more}")
    return lines
