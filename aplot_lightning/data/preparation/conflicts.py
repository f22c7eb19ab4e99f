"""Comparisons that contradict or repeat each other, and prompts that are also elsewhere, found by sorting digests."""

from __future__ import annotations

import numpy as np


def numbered(*digests: np.ndarray) -> list[np.ndarray]:
    """A number for each digest, (n,) int64 for each (n, 2) uint64 array: equal ones have equal numbers, in all arrays.

    Digests are of 16 bytes, so that no two of a million different texts are ever taken for equal.
    """
    both = np.concatenate(digests)
    order = np.lexsort((both[:, 1], both[:, 0]))
    new = np.ones(len(both), dtype=bool)
    new[1:] = (both[order[1:]] != both[order[:-1]]).any(axis=1)
    numbers = np.empty(len(both), dtype=np.int64)
    numbers[order] = np.cumsum(new) - 1
    return np.split(numbers, np.cumsum([len(each) for each in digests])[:-1])


def among(digests: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which digests (n, 2) are also among the others (m, 2): (n,) bool."""
    mine, theirs = numbered(digests, others)
    return np.isin(mine, theirs)


def contradicted(counts: np.ndarray, preferred: np.ndarray, opposite: np.ndarray) -> np.ndarray:
    """The first comparison that states the opposite of what each one states: (C,) int64, -1 where none does.

    Two comparisons contradict each other when, for the same prompt, one prefers a response that the other rejects in
    favour of the same counterpart.

    Args:
        counts: (C,) orders that each comparison states.
        preferred: (O, 2) uint64, digests of these orders behind each other.
        opposite: (O, 2) uint64, and of their opposites.
    """
    result = np.full(len(counts), -1, dtype=np.int64)
    if not len(preferred):
        return result
    comparison = np.repeat(np.arange(len(counts)), counts)
    these, those = numbered(preferred, opposite)
    first = np.full(int(max(these.max(), those.max())) + 1, -1, dtype=np.int64)
    first[these[::-1]] = comparison[::-1]  # of several writes the last one stays: the first comparison
    against = first[those]
    stated = np.flatnonzero(against >= 0)[::-1]
    result[comparison[stated]] = against[stated]
    return result


def repeated(listed: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The first comparison that each one repeats: (C,) int64, -1 where it repeats none before it.

    Args:
        listed: (C, 2) uint64, a digest of each comparison's prompt and pairs.
        left: (C,) bool, the comparisons that count.
    """
    places = np.flatnonzero(left)
    result = np.full(len(listed), -1, dtype=np.int64)
    (numbers,) = numbered(listed[places])
    first = np.empty(len(places), dtype=np.int64)
    first[numbers[::-1]] = places[::-1]
    earlier = first[numbers]
    again = earlier < places
    result[places[again]] = earlier[again]
    return result
