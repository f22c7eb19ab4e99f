"""Encoded comparisons as flat arrays: tokens with shared prefixes, pairs, and what is known of each pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aplot_lightning.data.comparisons import Comparison

TOKEN_COLUMNS = ("chosen_length", "rejected_length", "chosen_suffix", "rejected_suffix")
DATA_COLUMNS = ("margin", "target", "chosen_score", "rejected_score")


@dataclass
class EncodedComparisons:
    """C comparisons as flat arrays: tokens, and where each comparison's segments and pairs begin.

    A comparison's segments are its prefix (the tokens that all its conversations share) and one suffix a response, in
    that order; no suffix is empty.

    Attributes:
        tokens: (T,) int32, all segments behind each other.
        segments: (S + 1,) int64, where each segment begins in `tokens`.
        first_segment: (C + 1,) int64, each comparison's first segment (its prefix).
        winners, losers: (P,) int32, each pair's responses, counted within its comparison.
        first_pair: (C + 1,) int64, each comparison's first pair.
        columns: name -> (P,): what `Pairs` lists. ``weight`` is such that the pairs of one comparison share a weight of
            1; of the data's own columns those are there that have at least one value, NaN for the other pairs.
        sources: the sources' names, in the order of the numbers in the column ``source``.
        starts: (R,) int32, where each conversation's response begins, in tokens from its beginning.
        lengths: (C,) int32, tokens of the longest conversation.
        kept: (C,) int64, each comparison's place in the list that was encoded.
    """

    tokens: np.ndarray
    segments: np.ndarray
    first_segment: np.ndarray
    winners: np.ndarray
    losers: np.ndarray
    first_pair: np.ndarray
    columns: dict[str, np.ndarray]
    sources: list[str]
    starts: np.ndarray
    lengths: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def pairs(self) -> int:
        return len(self.winners)

    @property
    def tree_lengths(self) -> np.ndarray:
        """(C,) int64, tokens of each comparison when its responses share their prefix."""
        return self.segments[self.first_segment[1:]] - self.segments[self.first_segment[:-1]]

    @property
    def response_counts(self) -> np.ndarray:
        """(C,) int64, responses of each comparison."""
        return np.diff(self.first_segment) - 1

    def segments_of(self, comparison: int) -> list[np.ndarray]:
        """The tokens of one comparison, int32: its prefix, then one suffix a response."""
        start, stop = self.first_segment[comparison], self.first_segment[comparison + 1]
        return [self.tokens[self.segments[i] : self.segments[i + 1]] for i in range(start, stop)]

    def rows(self, comparison: int) -> list[np.ndarray]:
        """The whole conversations of one comparison, one int32 array a response."""
        prefix, *suffixes = self.segments_of(comparison)
        return [np.concatenate([prefix, suffix]) for suffix in suffixes]

    def response_starts(self, comparison: int) -> np.ndarray:
        """Where the response of each conversation of one comparison begins, (r,) int32."""
        first, last = (self.first_segment[place] - place for place in (comparison, comparison + 1))
        return self.starts[first:last]


def shared_beginning(rows: Sequence[np.ndarray]) -> int:
    """Tokens that all rows share at their beginning."""
    shortest = min(len(row) for row in rows)
    same = np.ones(shortest, dtype=bool)
    for row in rows[1:]:
        same &= rows[0][:shortest] == row[:shortest]
    return shortest if same.all() else int(np.argmin(same))


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """Tokens that all rows share at their beginning, at most the shortest row's length less one."""
    return min(shared_beginning(rows), min(len(row) for row in rows) - 1)


class Builder:
    """Collects encoded comparisons and lays them out as flat arrays."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.segment_lengths: list[int] = []
        self.segment_counts: list[int] = []
        self.starts: list[int] = []
        self.winners: list[int] = []
        self.losers: list[int] = []
        self.pair_counts: list[int] = []
        self.columns: dict[str, list[float]] = {name: [] for name in (*TOKEN_COLUMNS, *DATA_COLUMNS)}
        self.sources: dict[str, int] = {}
        self.source: list[int] = []
        self.lengths: list[int] = []
        self.kept: list[int] = []

    def add(self, place: int, comparison: Comparison, rows: Sequence[np.ndarray], starts: Sequence[int]) -> None:
        """Adds one comparison: its place in the list, its conversations' tokens, and where their responses begin."""
        prefix = common_prefix(rows)
        segments = [rows[0][:prefix], *(row[prefix:] for row in rows)]
        self.tokens += segments
        self.segment_lengths += [len(segment) for segment in segments]
        self.segment_counts.append(len(segments))
        self.starts += starts
        self.lengths.append(max(len(row) for row in rows))
        self.kept.append(place)
        self.pair_counts.append(len(comparison.pairs))
        source = self.sources.setdefault(comparison.source, len(self.sources))
        for winner, loser in comparison.pairs:
            self.winners.append(winner)
            self.losers.append(loser)
            self.source.append(source)
            both = (winner, loser)
            lengths = [len(rows[side]) - starts[side] for side in both]
            shared = shared_beginning([rows[side] for side in both])
            suffixes = [len(rows[side]) - shared for side in both]
            scores = [comparison.scores[side] if comparison.scores else None for side in both]
            values = [*lengths, *suffixes, comparison.margin, comparison.target, *scores]
            for column, value in zip(self.columns.values(), values, strict=True):
                column.append(float("nan") if value is None else value)

    def build(self) -> EncodedComparisons:
        return EncodedComparisons(
            tokens=np.concatenate(self.tokens) if self.tokens else np.zeros(0, dtype=np.int32),
            segments=_bounds(self.segment_lengths),
            first_segment=_bounds(self.segment_counts),
            winners=np.asarray(self.winners, dtype=np.int32),
            losers=np.asarray(self.losers, dtype=np.int32),
            first_pair=_bounds(self.pair_counts),
            columns=self._filled_columns(),
            sources=list(self.sources),
            starts=np.asarray(self.starts, dtype=np.int32),
            lengths=np.asarray(self.lengths, dtype=np.int32),
            kept=np.asarray(self.kept, dtype=np.int64),
        )

    def _filled_columns(self) -> dict[str, np.ndarray]:
        columns = {name: np.asarray(values, dtype=np.float32) for name, values in self.columns.items()}
        if not np.isnan(columns["target"]).all():
            columns["target"] = np.nan_to_num(columns["target"], nan=1.0)  # a pair without a soft target has a hard one
        counts = np.asarray(self.pair_counts, dtype=np.int64)
        return {
            "weight": np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32),
            "source": np.asarray(self.source, dtype=np.int64),
            **{name: values for name, values in columns.items() if not np.isnan(values).all()},
        }


def _bounds(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)
