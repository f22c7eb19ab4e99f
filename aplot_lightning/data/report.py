"""What happened to every row: each row that was read is used, or refused under exactly one kind."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.report_pages import markdown_page, summary_lines, terminal_table
from aplot_lightning.data.robustness import account_text

if TYPE_CHECKING:
    from aplot_lightning.data.preview import Preview

PLACES = ("train", "validation", "id", "ood_validation", "ood")  # the order in which a reader sees them


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
