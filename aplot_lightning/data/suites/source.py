"""A suite as a source: its raw files, or its pairs in our own layout, row by row as rows of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.sources.files import exists, expanded
from aplot_lightning.data.sources.hub import HubDataset
from aplot_lightning.data.sources.source import Row, Source, fingerprint_of
from aplot_lightning.data.suites.files import fingerprints, parts_of
from aplot_lightning.data.suites.hhh import HHH
from aplot_lightning.data.suites.judgebench import JUDGEBENCH
from aplot_lightning.data.suites.layout import Layout, Ours
from aplot_lightning.data.suites.llmbar import LLMBAR
from aplot_lightning.data.suites.mt_bench import MT_BENCH
from aplot_lightning.data.suites.rewardbench import REWARDBENCH, REWARDBENCH_2
from aplot_lightning.data.suites.rm_bench import RM_BENCH
from aplot_lightning.errors import UserError

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (REWARDBENCH, REWARDBENCH_2, RM_BENCH, JUDGEBENCH, HHH, MT_BENCH, LLMBAR)
}
PAIRS = "pairs"
SUITES = (*LAYOUTS, PAIRS)
TOLD_BY = ("rm_bench", "rewardbench2", "judgebench", "llmbar", "hhh", "mt_bench", "rewardbench")  # narrowest first


class Suite(Source):
    """A public benchmark's own files as rows of ours; in a config ``{suite: hhh, path: ...}``.

    A row that is neither one of the suite's raw rows nor one of ours is refused; ties between the people who judged
    are left out without a count. Prompts with several right answers become rows of many responses.

    Args:
        suite: one of `SUITES`; ``pairs`` takes any file of comparisons in our own layouts.
        path: a file, a folder (a clone of the suite's repository, or shards), or a hub data set's name.

    Raises:
        UserError: no such suite, file or folder.
    """

    def __init__(self, suite: str, path: str) -> None:
        if suite not in SUITES:
            raise UserError(f"there is no suite {suite!r}: the suites are {', '.join(SUITES)}")
        self.suite = suite
        self.layout = LAYOUTS.get(suite)
        self.given = path
        self.name = suite
        self.parts = self._open(path)

    def __str__(self) -> str:
        return f"{self.suite}: {self.given}"

    def _open(self, path: str) -> list[tuple[Source, tuple[str, ...]]]:
        from aplot_lightning.data.sources import FILE_LIKE, HUB_NAME  # which may name this class

        place = expanded(path)
        named = HUB_NAME.fullmatch(path)
        if named is None or FILE_LIKE.match(path) or exists(place):
            return parts_of(place, self.layout.files if self.layout else "")
        if named["split"] or self.layout is None:
            return [(HubDataset(named["name"], named["split"] or "train"), (named["split"] or "",))]
        return [(HubDataset(named["name"], split, config), (part,)) for config, split, part in self.layout.hub]

    def fingerprint(self) -> str:
        return fingerprint_of(type(self).__qualname__, self.suite, self.name, *fingerprints(self.parts))

    def rows(self) -> Iterator[Row]:
        for source, places in self.parts:
            for where, row in source.rows():
                try:
                    read = self._read(row, places)
                except RowError as error:
                    yield where, error
                    continue
                if read is not None:
                    yield where, read

    def _read(self, row: Any, places: Sequence[str]) -> Ours | None:
        """A row of ours, or None for one that the suite leaves out. Raises RowError for any other."""
        if isinstance(row, RowError):
            raise row
        if not isinstance(row, Mapping):
            raise RowError("not_json", f"not a JSON object but {type(row).__name__}")
        layout = self.layout
        if layout is None:
            return dict(row)
        if layout.fits(row):
            return layout.read(row, places)
        read = layout.own_row(row)
        if read is not None:
            return read
        raise RowError("missing_field", f"no row of {layout.title}, which has {', '.join(layout.fields)}{_like(row)}")


def _like(row: Mapping[str, Any]) -> str:
    """What a row that is another suite's looks like, for a message."""
    other = next((name for name in TOLD_BY if LAYOUTS[name].fits(row)), None)
    there = ", ".join(str(name)[:30] for name in list(row)[:8]) or "nothing"
    return f"; this one looks like {other}" if other else f"; this one has {there}"
