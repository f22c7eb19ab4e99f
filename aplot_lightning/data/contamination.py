"""Prompts that are nearly those of an evaluation set: MinHash signatures, and a search through bands of them.

Two prompts are compared by the Jaccard similarity of their sets of character shingles: the share of all shingles of
either that are in both. MinHash (Broder 1997, "On the resemblance and containment of documents") estimates it from a
few numbers a prompt; banding (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4) finds the pairs
worth comparing without comparing all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from datasketch import MinHash

from aplot_lightning.data.comparisons import normalised_text

# Characters and not words: scripts without spaces are cut like all others, and a typo costs five shingles, not a whole
# phrase. Five is what the book above takes for short texts; longer shingles would make one typo a different prompt.
SHINGLE = 5
HASHES = 96  # the estimate's standard deviation is at most 0.05, and 0.04 at the threshold
THRESHOLD = 0.8
BANDS, ROWS = 16, 6  # a pair of similarity 0.8 shares a band with probability 0.99, one of 0.9 with 0.99999
SEED = 1
PIECE = 1 << 13  # shingles hashed at once, so that a prompt of a megabyte takes little memory
CHUNK = 1 << 16  # signatures searched at once
CANDIDATES = 64  # tested prompts that one prompt is compared with in one band
COMPARED = 1 << 15  # pairs of signatures compared at once
TABLE = 22  # bits of the table that tells at once which band keys no tested prompt has
EMPTY = np.iinfo(np.uint16).max  # all numbers of an empty prompt; chance does not make 96 of them


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures of prompts, (n, 96) uint16, the same in every process and on every machine.

    Each text is normalised as prompts are compared (`normalised_text`) and cut into all its stretches of five
    characters; a shorter text is one shingle. Of each minimum the low 16 bits are kept (b-bit minwise hashing, Li and
    König 2010), which makes two different minima equal once in 65,536 times. The signature of a text that is empty
    after normalising matches nothing, see `near_matches`.
    """
    blank = MinHash(num_perm=HASHES, seed=SEED, hashfunc=int, scheme="affine32")
    found = np.empty((len(texts), HASHES), dtype=np.uint16)
    for place, text in enumerate(texts):
        sketch = blank.copy()
        for piece in _shingles(normalised_text(text)):
            sketch.update_batch(piece.tolist())
        found[place] = sketch.hashvalues.astype(np.uint16)
    return found


def near_matches(signatures: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Which prompts are nearly one of the tested prompts: an estimated Jaccard similarity of 0.8 or more.

    Args:
        signatures: (n, 96) uint16 of `signatures`; may be memory-mapped, it is read in chunks.
        tested: (m, 96) uint16, of the prompts of evaluation sets.

    Returns:
        (n,) bool. Empty prompts match nothing, and neither does any prompt where m is 0.

    A pair of true similarity 0.8 is found about half the time, as with any estimate at its threshold; one of 0.9 in
    more than 99 % of cases, one of 0.65 in less than 1 %. The memory beside the arrays is about 50 MB for any n.
    """
    tested = np.unique(tested[(tested != EMPTY).any(axis=1)], axis=0)
    matched = np.zeros(len(signatures), dtype=bool)
    bands = [_Band(tested, band) for band in range(BANDS)] if len(tested) else []
    for start in range(0, len(signatures), CHUNK):
        chunk = np.ascontiguousarray(signatures[start : start + CHUNK])
        found = matched[start : start + CHUNK]
        for band in bands:
            rows, first, last = band.candidates(chunk, np.flatnonzero(~found))
            found[_verified(chunk, tested, rows, band.order, first, last)] = True
    return matched


def _shingles(text: str) -> Iterator[np.ndarray]:
    """32-bit hashes of all shingles of a normalised text, in pieces; none of an empty text.

    Vector multiply-shift hashing (Dietzfelbinger 1996): the high half of a sum of characters times random odd numbers.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    if 0 < len(codes) < SHINGLE:
        codes = np.pad(codes, (0, SHINGLE - len(codes)))
    for start in range(0, len(codes) - SHINGLE + 1, PIECE):
        piece = codes[start : start + PIECE + SHINGLE - 1].astype(np.uint64)
        count = len(piece) - SHINGLE + 1
        sums = np.zeros(count, dtype=np.uint64)
        for place, factor in enumerate(_factors(SHINGLE)):
            sums += piece[place : place + count] * factor
        yield sums >> np.uint64(32)


@cache
def _factors(count: int) -> np.ndarray:
    """Random odd 64-bit numbers, always the same: RandomState's stream is fixed for ever, unlike default_rng's."""
    state = np.random.RandomState(SEED)
    return state.randint(0, 1 << 63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class _Band:
    """The tested signatures in the order of one band's key, and a table that tells most other keys apart at once."""

    def __init__(self, tested: np.ndarray, band: int) -> None:
        self.columns = slice(band * ROWS, (band + 1) * ROWS)
        keys = self._keys(tested)
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        self.table = np.zeros(1 << TABLE, dtype=bool)
        self.table[self._slots(keys)] = True

    def candidates(self, chunk: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of `rows` whose band some tested signature has, and from where to where in `order` these are."""
        keys = self._keys(chunk)[rows]
        possible = self.table[self._slots(keys)]
        rows, keys = rows[possible], keys[possible]
        first = np.searchsorted(self.keys, keys, side="left")
        last = np.searchsorted(self.keys, keys, side="right")
        found = last > first
        return rows[found], first[found], last[found]

    def _keys(self, signatures: np.ndarray) -> np.ndarray:
        keys = np.zeros(len(signatures), dtype=np.uint64)
        for column, factor in zip(signatures[:, self.columns].T, _factors(ROWS), strict=True):
            keys += (column.astype(np.uint64) + np.uint64(1)) * factor
        return keys

    @staticmethod
    def _slots(keys: np.ndarray) -> np.ndarray:
        return keys >> np.uint64(64 - TABLE)


def _verified(
    chunk: np.ndarray, tested: np.ndarray, rows: np.ndarray, order: np.ndarray, first: np.ndarray, last: np.ndarray
) -> np.ndarray:
    """Those of `rows` that agree with one of their candidates in enough numbers.

    The candidates of a row are ``tested[order[first:last]]``, of more than `CANDIDATES` that many, evenly spaced: who
    shares a template with thousands of tested prompts is near to many of them or to none. They are taken a few at a
    time, and a row that has found its match is done.
    """
    enough = int(np.ceil(THRESHOLD * HASHES))
    matched, done = [], 0
    while len(rows):
        step = max(1, COMPARED // len(rows))
        count = last - first
        most = np.minimum(count, CANDIDATES)
        turn = np.minimum(np.arange(done, done + step), most[:, None] - 1)
        places = first[:, None] + turn * count[:, None] // most[:, None]
        found = np.zeros(len(rows), dtype=bool)
        for start in range(0, len(rows), COMPARED):
            part = slice(start, start + COMPARED)
            agreeing = _agreeing(chunk[rows[part], None], tested[order[places[part]]])
            found[part] = (agreeing >= enough).any(axis=1)
        matched.append(rows[found])
        done += step
        left = ~found & (done < most)
        rows, first, last = rows[left], first[left], last[left]
    return np.concatenate([np.zeros(0, dtype=np.int64), *matched])


def _agreeing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How many numbers of the last axis are equal; eight comparisons are summed at a time, as bytes of one word."""
    words = (one == other).view(np.uint64).sum(axis=-1, dtype=np.uint64)
    return words * np.uint64(0x0101010101010101) >> np.uint64(56)
