"""Encoded comparisons as a view over flat arrays: tokens with shared prefixes, pairs, and what is known of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Protocol

import numpy as np

from aplot_lightning.data.comparisons import Comparison

TOKEN_COLUMNS = ("chosen_length", "rejected_length", "chosen_suffix", "rejected_suffix")
DATA_COLUMNS = ("margin", "target", "chosen_score", "rejected_score")


class Tokens(Protocol):
    """A flat int32 array, in memory or in a file."""

    def __getitem__(self, place: slice, /) -> np.ndarray: ...


class Embeddings(Protocol):
    """What a backbone made of R conversations: `embeddings[rows]`, (n,) int64 -> (n, d) float32."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


@dataclass
class Part:
    """All C comparisons of one source, usable or not, with R responses and P pairs.

    Attributes:
        tokens: all segments behind each other; a comparison that cannot be used has none.
        arrays: ``response_counts`` and ``pair_counts`` (C,); ``winners`` and ``losers`` (P,); `DATA_COLUMNS` (P,)
            float32, NaN where there is no value; ``source`` (C,), places in `sources`; and those of `TokenRows.arrays`.
        sources: names.
    """

    tokens: Tokens
    arrays: Mapping[str, np.ndarray]
    sources: Sequence[str]


@dataclass
class EncodedComparisons:
    """C comparisons of one or more sources: where their tokens are, and where each one's segments and pairs begin.

    A comparison's segments are its prefix (the tokens that all its conversations share) and one suffix a response, in
    that order; no suffix is empty.

    Attributes:
        tokens: the sources' tokens, a flat int32 array (or file) each.
        origins: (C,) int32, the source of each comparison's tokens, a place in `tokens`.
        begins: (C,) int64, where its tokens begin there.
        segment_lengths: (S,) int32.
        first_segment: (C + 1,) int64, each comparison's first segment (its prefix).
        winners, losers: (P,) int32, each pair's responses, counted within its comparison.
        first_pair: (C + 1,) int64, each comparison's first pair.
        columns: name -> (P,): what `Pairs` lists. ``weight`` is such that the pairs of one comparison share a weight of
            1; of the data's own columns those are there that have at least one value, NaN for the other pairs.
        sources: the names in the rows' ``source``, in the order of the numbers in the column ``source``.
        starts: (R,) int32, where each conversation's response begins, in tokens from its beginning.
        lengths: (C,) int32, tokens of the longest conversation.
        kept: (C,) int64, each comparison's place in the list that was encoded.
        embeddings: of all R conversations in order, where they are known already; None for batches of tokens.
    """

    tokens: Sequence[Tokens]
    origins: np.ndarray
    begins: np.ndarray
    segment_lengths: np.ndarray
    first_segment: np.ndarray
    winners: np.ndarray
    losers: np.ndarray
    first_pair: np.ndarray
    columns: dict[str, np.ndarray]
    sources: list[str]
    starts: np.ndarray
    lengths: np.ndarray
    kept: np.ndarray
    embeddings: Embeddings | None = None

    @staticmethod
    def of(parts: Sequence[Part], places: Sequence[np.ndarray]) -> EncodedComparisons:
        """The comparisons at `places` (int64, one array a part) of several sources, behind each other.

        No token is copied. `kept` counts through all parts.
        """
        chosen = [_gathered(part, own) for part, own in zip(parts, places, strict=True)]
        joined = {name: np.concatenate([each[name] for each in chosen]) for name in chosen[0]}
        counts = joined.pop("pair_counts")
        source, sources = _numbered_sources(joined.pop("source"), parts, places)
        before = bounds(np.asarray([len(part.arrays["lengths"]) for part in parts]))
        return EncodedComparisons(
            tokens=[part.tokens for part in parts],
            origins=np.repeat(np.arange(len(parts), dtype=np.int32), [len(own) for own in places]),
            first_segment=bounds(joined.pop("response_counts") + 1),
            first_pair=bounds(counts),
            columns={
                "weight": np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32),
                "source": np.repeat(source, counts),
                **_filled({name: joined.pop(name) for name in (*TOKEN_COLUMNS, *DATA_COLUMNS)}),
            },
            sources=sources,
            kept=np.concatenate([own + start for own, start in zip(places, before, strict=False)]).astype(np.int64),
            **joined,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def pairs(self) -> int:
        return len(self.winners)

    @cached_property
    def tree_lengths(self) -> np.ndarray:
        """(C,) int64, tokens of each comparison when its responses share their prefix."""
        return np.diff(bounds(self.segment_lengths)[self.first_segment])

    @cached_property
    def response_counts(self) -> np.ndarray:
        """(C,) int64, responses of each comparison."""
        return np.diff(self.first_segment) - 1

    @cached_property
    def first_response(self) -> np.ndarray:
        """(C + 1,) int64, each comparison's first conversation."""
        return self.first_segment - np.arange(len(self.first_segment))

    def token_digest(self, start: int, stop: int) -> str:
        """Hex digest of the tokens of all conversations of comparisons `start` to `stop`, at least one, in order."""
        state = sha256(self.response_counts[start:stop].astype("<i8").tobytes())
        own = self.segment_lengths[self.first_segment[start] : self.first_segment[stop]]
        state.update(own.astype("<i4").tobytes())
        begins, origins = self.begins[start:stop], self.origins[start:stop]
        ends = begins + self.tree_lengths[start:stop]
        cuts = np.flatnonzero((begins[1:] != ends[:-1]) | (origins[1:] != origins[:-1])) + 1
        for part in np.split(np.arange(stop - start), cuts):  # what lies together is read at once
            tokens = self.tokens[origins[part[0]]][int(begins[part[0]]) : int(ends[part[-1]])]
            state.update(tokens.astype("<i4", copy=False).tobytes())
        return state.hexdigest()

    def segments_of(self, comparison: int) -> list[np.ndarray]:
        """The tokens of one comparison, int32: its prefix, then one suffix a response."""
        start, stop = self.first_segment[comparison], self.first_segment[comparison + 1]
        ends = np.cumsum(self.segment_lengths[start:stop], dtype=np.int64)
        begin = int(self.begins[comparison])
        tokens = self.tokens[self.origins[comparison]][begin : begin + int(ends[-1])]
        return np.split(tokens, ends[:-1])

    def rows(self, comparison: int) -> list[np.ndarray]:
        """The whole conversations of one comparison, one int32 array a response."""
        prefix, *suffixes = self.segments_of(comparison)
        return [np.concatenate([prefix, suffix]) for suffix in suffixes]

    def response_starts(self, comparison: int) -> np.ndarray:
        """Where the response of each conversation of one comparison begins, (r,) int32."""
        return self.starts[self.first_response[comparison] : self.first_response[comparison + 1]]


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


def bounds(counts: np.ndarray) -> np.ndarray:
    """Where each of n stretches begins when they lie behind each other, and where the last ends: (n + 1,) int64."""
    result = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def stretches(first: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Where the values of the stretches at `places` are, behind each other, int64; `first` is what `bounds` gives."""
    counts = first[places + 1] - first[places]
    own = bounds(counts)
    return np.arange(own[-1]) + np.repeat(first[places] - own[:-1], counts)


class TokenRows:
    """Lays the conversations of comparisons out as flat arrays."""

    def __init__(self) -> None:
        self._tokens: list[np.ndarray] = []
        self._segment_lengths: list[int] = []
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._columns: list[list[int]] = []

    def add(self, comparison: Comparison, rows: Sequence[np.ndarray], starts: Sequence[int]) -> None:
        """Adds a comparison: its conversations' tokens and where their responses begin; no rows if it is refused."""
        responses = len(comparison.responses)
        common = shared_beginning(rows) if rows else 0
        prefix = min(common, min(map(len, rows)) - 1) if rows else 0
        segments = [rows[0][:prefix], *(row[prefix:] for row in rows)] if rows else []
        self._tokens += segments
        self._segment_lengths += [len(segment) for segment in segments] or [0] * (responses + 1)
        self._starts += starts if rows else [0] * responses
        self._lengths.append(max(map(len, rows), default=0))
        for pair in comparison.pairs if rows else ():
            shared = common if responses == 2 else shared_beginning([rows[side] for side in pair])
            lengths = [len(rows[side]) - starts[side] for side in pair]
            self._columns.append([*lengths, *(len(rows[side]) - shared for side in pair)])
        if not rows:
            self._columns += [[0] * len(TOKEN_COLUMNS)] * len(comparison.pairs)

    def arrays(self) -> dict[str, np.ndarray]:
        """``tokens`` (T,), ``segment_lengths``, ``starts`` (R,), ``lengths`` (C,), `TOKEN_COLUMNS` (P,); all int32."""
        columns = np.asarray(self._columns, dtype=np.int32).reshape(-1, len(TOKEN_COLUMNS))
        return {
            "tokens": np.concatenate([np.zeros(0, dtype=np.int32), *self._tokens]),
            "segment_lengths": np.asarray(self._segment_lengths, dtype=np.int32),
            "starts": np.asarray(self._starts, dtype=np.int32),
            "lengths": np.asarray(self._lengths, dtype=np.int32),
            **{name: np.ascontiguousarray(column) for name, column in zip(TOKEN_COLUMNS, columns.T, strict=True)},
        }


class Builder:
    """Collects encoded comparisons in memory."""

    def __init__(self) -> None:
        self._rows = TokenRows()
        self._comparisons: list[Comparison] = []
        self._kept: list[int] = []

    def add(self, place: int, comparison: Comparison, rows: Sequence[np.ndarray], starts: Sequence[int]) -> None:
        """Adds one comparison: its place in the list, its conversations' tokens, and where their responses begin."""
        self._rows.add(comparison, rows, starts)
        self._comparisons.append(comparison)
        self._kept.append(place)

    def build(self) -> EncodedComparisons:
        """All that was added, in its order."""
        arrays = {**self._rows.arrays(), **pair_arrays(self._comparisons)}
        names = {name: place for place, name in enumerate(dict.fromkeys(c.source for c in self._comparisons))}
        arrays["source"] = np.asarray([names[c.source] for c in self._comparisons], dtype=np.int32)
        part = Part(arrays.pop("tokens"), arrays, list(names))
        encoded = EncodedComparisons.of([part], [np.arange(len(self._kept))])
        encoded.kept = np.asarray(self._kept, dtype=np.int64)
        return encoded


def pair_arrays(comparisons: Sequence[Comparison]) -> dict[str, np.ndarray]:
    """Counts of responses and pairs, the pairs, and `DATA_COLUMNS` of C comparisons, as `Part` has them."""
    pairs = [(comparison, pair) for comparison in comparisons for pair in comparison.pairs]
    both = np.asarray([pair for _, pair in pairs], dtype=np.int32).reshape(-1, 2)
    values = [(c.margin, c.target, *(c.scores[side] if c.scores else None for side in pair)) for c, pair in pairs]
    columns = np.asarray(values, dtype=np.float32).reshape(-1, len(DATA_COLUMNS))  # None becomes NaN
    return {
        "response_counts": np.asarray([len(comparison.responses) for comparison in comparisons], dtype=np.int32),
        "pair_counts": np.asarray([len(comparison.pairs) for comparison in comparisons], dtype=np.int32),
        "winners": np.ascontiguousarray(both[:, 0]),
        "losers": np.ascontiguousarray(both[:, 1]),
        **{name: np.ascontiguousarray(column) for name, column in zip(DATA_COLUMNS, columns.T, strict=True)},
    }


def _gathered(part: Part, places: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of some comparisons of one source, with ``begins``."""
    arrays = part.arrays
    counts, pair_counts, lengths = arrays["response_counts"], arrays["pair_counts"], arrays["segment_lengths"]
    first_response = bounds(counts)
    first_segment = first_response + np.arange(len(first_response))
    pairs = stretches(bounds(pair_counts), places)
    return {
        "response_counts": counts[places],
        "pair_counts": pair_counts[places],
        "source": arrays["source"][places],
        "begins": bounds(lengths)[first_segment[places]],
        "segment_lengths": lengths[stretches(first_segment, places)],
        "starts": arrays["starts"][stretches(first_response, places)],
        "lengths": arrays["lengths"][places],
        **{name: arrays[name][pairs] for name in ("winners", "losers", *TOKEN_COLUMNS, *DATA_COLUMNS)},
    }


def _numbered_sources(
    numbers: np.ndarray, parts: Sequence[Part], places: Sequence[np.ndarray]
) -> tuple[np.ndarray, list[str]]:
    """The rows' sources numbered as they first appear, (C,) int64, and their names; no name without a comparison."""
    names = list(dict.fromkeys(name for part in parts for name in part.sources))
    shared = [np.asarray([names.index(name) for name in part.sources], dtype=np.int64) for part in parts]
    ends = np.cumsum([len(own) for own in places])[:-1]
    joined = np.concatenate([own[each] for own, each in zip(shared, np.split(numbers, ends), strict=True)])
    there, first = np.unique(joined, return_index=True)
    order = there[np.argsort(first)]
    again = np.zeros(len(names), dtype=np.int64)
    again[order] = np.arange(len(order))
    return again[joined], [names[place] for place in order]


def _filled(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns as float32, without those that have no value; a pair without a soft target has a hard one."""
    if not np.isnan(columns["target"]).all():
        columns["target"] = np.nan_to_num(columns["target"], nan=1.0)
    filled = {name: values.astype(np.float32, copy=False) for name, values in columns.items()}
    return {name: values for name, values in filled.items() if not np.isnan(values).all()}
