"""The two levels of a source's preparation: reading it, and encoding what was read."""

from __future__ import annotations

import json
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from aplot_lightning.data.comparisons import RowError, parse_comparison
from aplot_lightning.data.encoded import Part
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.ledger import LOCATIONS
from aplot_lightning.data.preparation.arrays import Arrays, ArrayWriter
from aplot_lightning.data.preparation.cache import Cache, code_digest
from aplot_lightning.data.preparation.chunks import run
from aplot_lightning.data.preparation.facts import facts_of
from aplot_lightning.data.preparation.texts import StoredComparisons, TextWriter
from aplot_lightning.data.preparation.tokens import tokens_of
from aplot_lightning.data.sources import Source, fingerprint_of

ACCOUNT = "account.json"
CONTENT = ("listed", "winners", "losers", "margin", "target", "chosen_score", "rejected_score")


@dataclass
class PreparedSource:
    """What is on disk of a source.

    Attributes:
        source: the source.
        read: rows that were read.
        refused: kind -> rows refused in reading.
        first: kind -> (row, where, message) of the first ten of them; rows count from 0.
        digest: hex digest of prompts, responses and preferences.
        comparisons: the C comparisons that rows became.
        facts: what `facts_of` gives, and ``row`` (C,) int64, ``source`` (C,) int32 (places in `sources`).
        tokens: what `tokens_of` gives.
        sources: names that the rows give as their source.
    """

    source: Source
    read: int
    refused: dict[str, int]
    first: dict[str, list[tuple[int, str, str]]]
    digest: str
    sources: list[str]
    comparisons: StoredComparisons
    facts: Arrays
    tokens: Arrays

    def __len__(self) -> int:
        return len(self.comparisons)

    def part(self) -> Part:
        arrays: Mapping[str, np.ndarray] = ChainMap(self.tokens, self.facts)  # type: ignore[arg-type]  # only read
        return Part(self.tokens.file("tokens"), arrays, self.sources)


def prepare(source: Source, encoder: ConversationEncoder, cache: Cache, workers: int | None = None) -> PreparedSource:
    """Reads and encodes a source, or finds in the cache that this was done.

    Args:
        source: where the rows are.
        encoder: for its tokens.
        cache: where the result is kept.
        workers: processes that prepare it; by default as many as there are cores, one for few rows.

    Raises:
        UserError: the source cannot be read, the chat template refuses a row, or the disk is full.
    """
    key = fingerprint_of("read", source.fingerprint(), source.name, code_digest())
    folder = cache.entry("read", key, partial(_read, source, workers))
    encoded = fingerprint_of("tokens", key, encoder.fingerprint())
    tokens = cache.entry("tokens", encoded, partial(_encode, folder, encoder, workers))
    account = json.loads((folder / ACCOUNT).read_text())
    return PreparedSource(
        source=source,
        comparisons=StoredComparisons(folder),
        facts=Arrays(folder),
        tokens=Arrays(tokens),
        **account,
    )


def _read(source: Source, workers: int | None, folder: Path) -> None:
    """Writes the comparisons of a source, what is known of them, and the account of the other rows."""
    read = 0
    refused: Counter[str] = Counter()
    first: dict[str, list[tuple[int, str, str]]] = {}
    sources: dict[str, int] = {}
    kept: list[tuple[int, int]] = []
    with ArrayWriter(folder) as writer:
        writer.append(_rows(kept))
        with TextWriter(folder) as texts:
            for number, (where, row) in enumerate(source.rows()):
                read += 1
                try:
                    if isinstance(row, RowError):
                        raise row
                    comparison = parse_comparison(row, where, source.name)
                except RowError as error:
                    refused[error.kind] += 1
                    if refused[error.kind] <= LOCATIONS:
                        first.setdefault(error.kind, []).append((number, where, str(error)))
                    continue
                texts.add(comparison)
                kept.append((number, sources.setdefault(comparison.source, len(sources))))
                if len(kept) == 1 << 14:
                    writer.append(_rows(kept))
                    kept.clear()
        writer.append(_rows(kept))
        stored = StoredComparisons(folder)
        run(FactsTask(folder), stored.batches, len(stored), workers, writer)
    account = {"read": read, "refused": refused, "first": first, "sources": list(sources)}
    (folder / ACCOUNT).write_text(json.dumps({**account, "digest": _content_digest(folder)}))


def _rows(kept: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    numbers = np.asarray(kept, dtype=np.int64).reshape(-1, 2)
    return {"row": numbers[:, 0], "source": numbers[:, 1].astype(np.int32)}


def _content_digest(folder: Path) -> str:
    """Hex digest of what is compared and how, whatever the files and rows are called."""
    facts, state = Arrays(folder), sha256()
    for name in CONTENT:
        state.update(facts[name].tobytes())
    return state.hexdigest()


def _encode(read: Path, encoder: ConversationEncoder, workers: int | None, folder: Path) -> None:
    stored = StoredComparisons(read)
    with ArrayWriter(folder) as writer:
        run(TokensTask(read, encoder), stored.batches, len(stored), workers, writer)


class FactsTask:
    """The facts of stored comparisons, for `run`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        stored = StoredComparisons(self.folder)
        if not stored.batches:
            yield facts_of([])
        for place in range(start, stop):
            yield facts_of(stored.batch(place))


class TokensTask:
    """The tokens of stored comparisons, for `run`."""

    def __init__(self, folder: Path, encoder: ConversationEncoder) -> None:
        self.folder = folder
        self.encoder = encoder

    def __call__(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        stored = StoredComparisons(self.folder)
        if not stored.batches:
            yield tokens_of([], [])
        for place in range(start, stop):
            comparisons = stored.batch(place)
            yield tokens_of(comparisons, self.encoder.encode_chunk(comparisons))
