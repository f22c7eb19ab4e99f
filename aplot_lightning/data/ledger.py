"""The account of one source: its rows that are used, and those that are refused, by kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aplot_lightning.data.comparisons import KINDS

if TYPE_CHECKING:
    pass

LOCATIONS = 10  # locations kept of each kind
COUNTS = ("near_leak", "cut_prompts", "cut_chosen", "cut_rejected")


class SourceLedger:
    """The account of one source, or of several together.

    Attributes:
        name: the source's name.
        read: rows read; blank lines are none.
        refused: kind -> rows refused, every kind of `KINDS`.
        locations: kind -> the first ten (where, message).
        near_leak: used rows whose prompt nearly equals one of an evaluation set; they are counted, not refused.
        cut_prompts: used rows whose prompt was cut to fit.
        cut_chosen, cut_rejected: pairs whose chosen or rejected response was cut at its end.
        summed: whether this is the sum of several accounts.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.read = 0
        self.refused = dict.fromkeys(KINDS, 0)
        self.locations: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
        self.near_leak = 0
        self.cut_prompts = 0
        self.cut_chosen = 0
        self.cut_rejected = 0
        self.summed = False
        self._pairs = 0
        self._longer_wins = 0
        self._lengths: list[np.ndarray] = []

    @property
    def used(self) -> int:
        """Rows read and not refused so far."""
        return self.read - sum(self.refused.values())

    @property
    def _counted(self) -> int:
        return sum(map(len, self._lengths))

    def refuse(self, kind: str, where: str, message: str) -> None:
        """Counts one row as refused; `kind` is one of `KINDS`."""
        self.refused[kind] += 1
        if len(self.locations[kind]) < LOCATIONS:
            self.locations[kind].append((where, message))

    def use(self, pairs: int, longer_wins: int, lengths: Sequence[int] | np.ndarray) -> None:
        """Counts comparisons that are used in the end, held-out ones too; called once for each part of a source.

        Args:
            pairs: pairs of these comparisons.
            longer_wins: those pairs whose winner has more characters.
            lengths: (C,) tokens of the longest conversation of each comparison; an int32 array is kept as it is.
        """
        self._pairs += int(pairs)
        self._longer_wins += int(longer_wins)
        self._lengths.append(np.asarray(lengths, dtype=np.int32))

    def reasons(self) -> str:
        """The refused rows in one line, for messages: ``12 missing_field, 1 tie; first: x.jsonl:1: no "chosen"``."""
        kinds = [kind for kind in KINDS if self.refused[kind]]
        if not kinds:
            return "no row was refused"
        where, message = self.locations[kinds[0]][0]
        return f"{', '.join(f'{self.refused[kind]} {kind}' for kind in kinds)}; first: {where}: {message}"

    def as_dict(self) -> dict[str, Any]:
        """The account in the form of ``data_report.json``.

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
            "near_leak": self.near_leak,
            "cut": {"prompts": self.cut_prompts, "chosen": self.cut_chosen, "rejected": self.cut_rejected},
            "longer_wins": self._longer_wins / self._pairs if self._pairs else None,
            "tokens": self._tokens(),
        }

    def _tokens(self) -> dict[str, int | None]:
        lengths = np.concatenate([np.zeros(0, dtype=np.int32), *self._lengths])
        if not len(lengths):
            return {"p50": None, "p95": None, "max": None}
        p50, p95, most = np.percentile(lengths, [50, 95, 100], method="inverted_cdf")
        return {"p50": int(p50), "p95": int(p95), "max": int(most)}

    @staticmethod
    def total(ledgers: Iterable[SourceLedger]) -> SourceLedger:
        """The account of several sources together."""
        total = SourceLedger("total")
        total.summed = True
        for ledger in ledgers:
            total.read += ledger.read
            for kind in KINDS:
                total.refused[kind] += ledger.refused[kind]
                total.locations[kind] = (total.locations[kind] + ledger.locations[kind])[:LOCATIONS]
            for name in COUNTS:
                setattr(total, name, getattr(total, name) + getattr(ledger, name))
            total._pairs += ledger._pairs
            total._longer_wins += ledger._longer_wins
            total._lengths += ledger._lengths
        return total
