"""How an optimizer batch is cut into micro-batches and laid out as tensors, padded or packed.

Only inside an optimizer batch are comparisons sorted by length, to save padding and to keep memory even: which ones
meet in it is random (plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aplot_lightning.data.encoded import EncodedComparisons, bounds, shared_beginning, stretches
from aplot_lightning.types import Batch, Pairs, Tree

Segments = Sequence[np.ndarray]  # a comparison's prefix, then one suffix a response; token ids

LEAST_ROOT = 8  # tokens; sharing fewer saves less than it costs


@dataclass(frozen=True)
class Layout:
    """How large micro-batches are, and how their tokens lie.

    Attributes:
        pad_id: what padded rows are filled up with.
        packed: one row a micro-batch in which conversations share what they begin with, in place of padded rows.
        size: most pairs in a micro-batch; None for any number.
        tokens: most tokens in a micro-batch, padding among them; None for any number.
    """

    pad_id: int
    packed: bool = False
    size: int | None = None
    tokens: int | None = None


def rank_micro_batches(
    encoded: EncodedComparisons, comparisons: np.ndarray, layout: Layout, rank: int = 0, world: int = 1
) -> list[np.ndarray]:
    """This rank's micro-batches of one optimizer batch, longest conversations first.

    Every rank gets the same number of them (a sharded model runs in step), some perhaps empty. Ranks are dealt the
    length-sorted comparisons in turn, so that their loads are alike. A comparison is never split: one that is larger
    than a micro-batch may be stands alone.

    Args:
        encoded: all comparisons.
        comparisons: (c,) int64, the optimizer batch.
        layout: how large a micro-batch may be.
        rank: this rank.
        world: number of ranks.
    """
    order = comparisons[np.argsort(-encoded.lengths[comparisons], kind="stable")]
    shares = [order[other::world] for other in range(world)]
    if layout.tokens is None:
        counts = [int((encoded.first_pair[share + 1] - encoded.first_pair[share]).sum()) for share in shares]
        parts = max(1, -(-max(counts) // layout.size) if layout.size else 1)
        return np.array_split(shares[rank], parts)
    cuts = [_cut_by_tokens(encoded, share, layout) for share in shares]
    parts = max(1, max(len(cut) for cut in cuts))
    return cuts[rank] + [order[:0]] * (parts - len(cuts[rank]))


def _cut_by_tokens(encoded: EncodedComparisons, order: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """Length-sorted comparisons as micro-batches of at most `layout.tokens` tokens and `layout.size` pairs."""
    assert layout.tokens is not None
    pairs = (encoded.first_pair[order + 1] - encoded.first_pair[order]).tolist()
    lengths = encoded.lengths[order].tolist()
    sizes = (encoded.tree_lengths if layout.packed else encoded.response_counts)[order].tolist()
    starts: list[int] = []
    held = spent = 0
    for place, (count, size) in enumerate(zip(pairs, sizes, strict=True)):
        # padded rows are as long as the first, which is the longest
        cost = (spent + size) * (1 if layout.packed or not starts else lengths[starts[-1]])
        if not starts or cost > layout.tokens or (layout.size is not None and held + count > layout.size):
            starts.append(place)
            held = spent = 0
        held, spent = held + count, spent + size
    return np.split(order, starts[1:]) if starts else []


def pad_rows(rows: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of token ids padded on the right: input_ids and attention_mask (R, length), end (R,), all int64."""
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    input_ids = np.full((len(rows), int(lengths.max())), pad_id, dtype=np.int64)
    mask = np.arange(input_ids.shape[1])[None, :] < lengths[:, None]
    input_ids[mask] = np.concatenate(rows)
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(lengths - 1)


def pack_row(comparisons: Sequence[Segments], pairs: Pairs, least_root: int = LEAST_ROOT) -> Batch:
    """A packed row of comparisons (see types.Tree), whose responses are those of the comparisons in order.

    Args:
        comparisons: at least one; no suffix is empty.
        pairs: over these responses.
        least_root: tokens that all of several comparisons must share to have them as a root.
    """
    root = _shared_root([prefix for prefix, *_ in comparisons], least_root)
    tree = Tree(root, tuple((len(prefix) - root, tuple(map(len, suffixes))) for prefix, *suffixes in comparisons))
    parts, end = [comparisons[0][0][:root]], []
    place = root
    for prefix, *suffixes in comparisons:
        parts.append(prefix[root:])
        place += len(prefix) - root
        ends = [0] * len(suffixes)
        for response in Tree.row_order([len(suffix) for suffix in suffixes]):
            parts.append(suffixes[response])
            place += len(suffixes[response])
            ends[response] = place - 1
        end += ends
    return Batch(
        torch.from_numpy(np.concatenate(parts).astype(np.int64))[None],
        None,
        torch.tensor(end),
        pairs,
        position_ids=torch.from_numpy(positions(tree))[None],
        tree=tree,
        lengths=tree.lengths,
    )


def positions(tree: Tree) -> np.ndarray:
    """(T,) int64, the position of each token of a packed row in its conversation."""
    parts = [np.arange(tree.root)]
    for prefix, suffixes in tree.comparisons:
        parts.append(np.arange(tree.root, tree.root + prefix))
        parts += [tree.root + prefix + np.arange(suffixes[place]) for place in Tree.row_order(suffixes)]
    return np.concatenate(parts).astype(np.int64)


def _shared_root(prefixes: Sequence[np.ndarray], least: int) -> int:
    shared = shared_beginning(prefixes) if len(prefixes) > 1 else 0
    return shared if shared >= least else 0


def collate(encoded: EncodedComparisons, comparisons: np.ndarray, layout: Layout) -> Batch:
    """One micro-batch of `comparisons`, of embeddings where they are known.

    An empty one holds a row of one token, or one embedding, and no pairs.
    """
    pairs = _pairs(encoded, comparisons)
    if encoded.embeddings is not None:
        rows = stretches(encoded.first_response, comparisons)
        return Batch.cached(torch.from_numpy(encoded.embeddings[rows if len(rows) else np.zeros(1, np.int64)]), pairs)
    if layout.packed:
        return _packed(encoded, comparisons, pairs)
    return _padded(encoded, comparisons, pairs, layout.pad_id)


def _pairs(encoded: EncodedComparisons, comparisons: np.ndarray) -> Pairs:
    """The pairs of some comparisons over the conversations of them, which lie behind each other."""
    index = stretches(encoded.first_pair, comparisons)
    first = bounds(encoded.response_counts[comparisons])[:-1]
    own = np.repeat(first, encoded.first_pair[comparisons + 1] - encoded.first_pair[comparisons])
    return Pairs(
        torch.from_numpy(encoded.winners[index] + own),
        torch.from_numpy(encoded.losers[index] + own),
        {
            **{name: torch.from_numpy(values[index]) for name, values in encoded.columns.items()},
            "index": torch.from_numpy(index),
        },
    )


def _packed(encoded: EncodedComparisons, comparisons: np.ndarray, pairs: Pairs) -> Batch:
    segments = [encoded.segments_of(comparison) for comparison in comparisons]
    if not segments:
        row = encoded.rows(0)[0]
        segments = [[row[:0], row[:1]]]
    return pack_row(segments, pairs)


def _padded(encoded: EncodedComparisons, comparisons: np.ndarray, pairs: Pairs, pad_id: int) -> Batch:
    rows = [row for comparison in comparisons for row in encoded.rows(comparison)]
    starts = [encoded.response_starts(comparison) for comparison in comparisons]
    if not rows:
        rows, starts = [encoded.rows(0)[0][:1]], [np.zeros(1, dtype=np.int64)]
    lengths = tuple(len(row) for row in rows)
    start = torch.from_numpy(np.concatenate(starts).astype(np.int64))
    return Batch(*pad_rows(rows, pad_id), pairs, start, lengths=lengths)
