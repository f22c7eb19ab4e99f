"""How rows are laid out for scoring: padded or packed, by number or by tokens; and evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from aplot_lightning.data.batching import LEAST_ROOT, pack_row, pad_rows
from aplot_lightning.data.encoded import common_prefix, shared_beginning
from aplot_lightning.types import Batch, Pairs


def cut_by_size(lengths: Sequence[int], batch_size: int, batch_tokens: int | None) -> Iterator[range]:
    """Cuts rows into consecutive batches.

    Args:
        lengths: tokens of every row, falling.
        batch_size: rows in one batch.
        batch_tokens: in its place, padded tokens in one batch; a batch always holds at least one row.
    """
    start = 0
    while start < len(lengths):
        size = batch_size if batch_tokens is None else batch_tokens // lengths[start]
        stop = min(len(lengths), start + max(1, size))
        yield range(start, stop)
        start = stop


def unpaired_batch(rows: Sequence[np.ndarray], pad_id: int) -> Batch:
    """Rows of token ids as a batch without pairs."""
    return Batch(*pad_rows(rows, pad_id), no_pairs(), lengths=tuple(map(len, rows)))


def padded_batches(
    rows: Sequence[np.ndarray], batch_size: int, batch_tokens: int | None, pad_id: int
) -> Iterator[tuple[list[int], Batch]]:
    """Rows of about the same length together, longest first: the places of a batch's rows, and the batch."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    for cut in cut_by_size([len(rows[place]) for place in order], batch_size, batch_tokens):
        places = [order[place] for place in cut]
        yield places, unpaired_batch([rows[place] for place in places], pad_id)


def packed_batches(
    rows: Sequence[np.ndarray], batch_size: int, batch_tokens: int | None
) -> Iterator[tuple[list[int], Batch]]:
    """As `padded_batches`, in packed rows where rows that begin alike share their beginning.

    Args:
        rows: of at least one token each.
        batch_size: rows in one batch.
        batch_tokens: in its place, tokens in one batch; a batch always holds at least one row.
    """
    parts = [part for group in alike(rows) for part in _parts(rows, group, batch_size, batch_tokens)]
    parts.sort(key=lambda part: -part.tokens)
    held: list[_Part] = []
    for part in parts:
        count = sum(len(other.places) for other in held) + len(part.places)
        tokens = sum(other.tokens for other in held) + part.tokens
        if held and (tokens > batch_tokens if batch_tokens is not None else count > batch_size):
            yield _packed(rows, held)
            held = []
        held.append(part)
    if held:
        yield _packed(rows, held)


@dataclass
class _Part:
    """Rows that share their first `prefix` tokens, and the tokens they have in all."""

    places: list[int]
    prefix: int
    tokens: int


def alike(rows: Sequence[np.ndarray]) -> list[list[int]]:
    """The places of rows in groups that begin alike, each group in the order of its tokens.

    Neighbours in that order stay together unless one of them shares more than twice as much with its other neighbour,
    or they share next to nothing.
    """
    order = sorted(range(len(rows)), key=lambda place: rows[place].astype(">u4").tobytes())
    shared = [shared_beginning([rows[one], rows[other]]) for one, other in pairwise(order)]
    groups = [order[:1]]
    for place, own in enumerate(shared):
        beside = max(shared[max(0, place - 1) : place + 2])
        if own >= LEAST_ROOT and 2 * own >= beside:
            groups[-1].append(order[place + 1])
        else:
            groups.append([order[place + 1]])
    return groups


def _parts(rows: Sequence[np.ndarray], group: list[int], batch_size: int, batch_tokens: int | None) -> Iterator[_Part]:
    """A group in parts that each fit into a batch."""
    part: _Part | None = None
    for place in group:
        length = len(rows[place])
        grown = alone = _Part([place], length - 1, length)
        if part is not None:
            prefix = min(common_prefix([rows[part.places[0]], rows[place]]), part.prefix)
            tokens = part.tokens + (len(part.places) - 1) * (part.prefix - prefix) + length - prefix
            grown = _Part([*part.places, place], prefix, tokens)
            if grown.tokens > batch_tokens if batch_tokens is not None else len(grown.places) > batch_size:
                yield part
                grown = alone
        part = grown
    if part is not None:
        yield part


def _packed(rows: Sequence[np.ndarray], parts: Sequence[_Part]) -> tuple[list[int], Batch]:
    comparisons = [
        [rows[part.places[0]][: part.prefix], *(rows[place][part.prefix :] for place in part.places)] for part in parts
    ]
    return [place for part in parts for place in part.places], pack_row(comparisons, no_pairs())


def no_pairs() -> Pairs:
    nothing = torch.zeros(0, dtype=torch.int64)
    return Pairs(nothing, nothing)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module goes back to its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
