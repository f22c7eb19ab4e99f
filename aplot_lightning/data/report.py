"""What happened to every row: each row that was read is used, or refused under exactly one kind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aplot_lightning.data.comparisons import KINDS
from aplot_lightning.data.report_pages import markdown_page, summary_lines, terminal_table
from aplot_lightning.data.robustness import account_text

if TYPE_CHECKING:
    from aplot_lightning.data.preview import Preview

LOCATIONS = 10  # places kept of each kind
PLACES = ("train", "validation", "id", "ood_validation", "ood")  # the order in which a reader sees them
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


class DataReport:
    """The accounts of all sources of a run, each under its place in ``data_report.json``.

    Places are ``("train",)`` (one or more sources), ``("validation",)`` and ``("id",)`` (one each), ``("ood", NAME)``
    and ``("ood_validation", NAME)``. Rows of a training source that are held out for ``validation`` or ``id`` count as
    used in ``train``; an account of their own may hold these rows once more.

    Attributes:
        previews: a few training pairs as the model reads them (`preview.previews`); empty until they are set.
        robustness: what was done to the training pairs on purpose (`Robustness.account`); None where nothing was.
        stream: what was read of a streamed training source so far, whose first block has the place ``("train",)``.
    """

    def __init__(self) -> None:
        self.previews: list[Preview] = []
        self.robustness: dict[str, Any] | None = None
        self.stream: SourceLedger | None = None
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
        """The content of ``data_report.json``: every account, the first rows refused (``locations``) and the previews.

        A set that the run does not have is null (``validation``, ``id``) or not among the names (``ood`` ...).
        """
        training = self._ledgers.get(("train",), [])
        content = {
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
            "previews": [asdict(preview) for preview in self.previews],
        }
        if self.robustness is not None:
            content["robustness"] = self.robustness
        if self.stream is not None:
            content["stream"] = {"read": self.stream.read, "refused": dict(self.stream.refused)}
        return content

    def to_text(self) -> str:
        """For the terminal: a line for each account, what was refused and where first, and what the model reads."""
        return terminal_table(self._accounts(), self.previews, self._done())

    def to_markdown(self) -> str:
        """The content of ``data_report.md``: the same, with the first ten rows of each kind that was refused."""
        return markdown_page(self._accounts(), self.previews, self._done())

    def write(self, folder: Path) -> None:
        """Writes data_report.json and data_report.md into a folder that exists. Raises OSError where it cannot."""
        # a lone surrogate, which JSON may hold and UTF-8 may not, is written as JSON's own escape of it
        content = json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"
        (folder / "data_report.json").write_text(content, encoding="utf-8", errors="backslashreplace")
        (folder / "data_report.md").write_text(self.to_markdown(), encoding="utf-8")

    def summary(self) -> list[str]:
        """One line a set, for the log of a run."""
        return [*summary_lines(self._accounts()), *(f"data {line}" for line in self._done())]

    def _done(self) -> list[str]:
        """What was done to the training pairs on purpose, in a sentence."""
        return [] if self.robustness is None else [account_text(self.robustness)]

    def _accounts(self) -> list[tuple[str, SourceLedger]]:
        """Every account under the name of its place, and where there are several training sources their sum."""
        accounts = []
        for place, ledgers in sorted(self._ledgers.items(), key=lambda entry: PLACES.index(entry[0][0])):
            accounts += [("/".join(place), ledger) for ledger in ledgers]
            if len(ledgers) > 1:
                accounts.append(("/".join(place), SourceLedger.total(ledgers)))
        return accounts

    def _only(self, place: tuple[str, ...]) -> dict[str, Any] | None:
        ledgers = self._ledgers.get(place)
        return ledgers[0].as_dict() if ledgers else None

    def _named(self, section: str) -> dict[str, Any]:
        return {place[1]: self._only(place) for place in self._ledgers if place[0] == section}
