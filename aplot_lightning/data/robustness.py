"""Training on a part of the data, or with some labels swapped: the axes of robustness tables.

Both go by a hash of each comparison and the seed, so that what becomes of a comparison does not depend on the others:
a smaller part lies within a larger one, pairs swapped at a lower noise are swapped at a higher one, and a pair that is
swapped among all comparisons is swapped in a part of them too. Evaluation sets stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aplot_lightning.data.encoded import Embeddings, EncodedComparisons, stretches
from aplot_lightning.errors import UserError

FRACTION, NOISE = 1, 2  # what a hash is for
SIDES = (("chosen_length", "rejected_length"), ("chosen_suffix", "rejected_suffix"))  # columns that go with a text


@dataclass(frozen=True)
class Robustness:
    """What is done to the training comparisons.

    Attributes:
        label_noise: share of the training pairs whose chosen and rejected response are swapped.
        train_fraction: share of the training comparisons that are trained on.
        seed: which they are.

    Raises:
        UserError: a share that is none.
    """

    label_noise: float = 0.0
    train_fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.label_noise < 1:
            raise UserError(f"data.label_noise is {self.label_noise}: give a share of the pairs, from 0 to below 1")
        if not 0 < self.train_fraction <= 1:
            raise UserError(f"data.train_fraction is {self.train_fraction}: give a share above 0, 1 for all pairs")

    def __bool__(self) -> bool:
        return self.label_noise > 0 or self.train_fraction < 1

    def kept(self, keys: np.ndarray) -> np.ndarray:
        """The places of the comparisons that are trained on, (c,) int64.

        Args:
            keys: (C,) uint64, a digest of each training comparison.

        Raises:
            UserError: the fraction leaves none.
        """
        places = np.flatnonzero(uniform(keys, self.seed, FRACTION) < self.train_fraction)
        if not len(places):
            raise UserError(
                f"data.train_fraction is {self.train_fraction}: none of {len(keys)} training comparisons is left; "
                "raise it"
            )
        return places

    def swaps(self, encoded: EncodedComparisons, keys: np.ndarray) -> np.ndarray:
        """Which pairs are swapped, (P,) bool, of comparisons with these keys, (C,) uint64."""
        counts = np.diff(encoded.first_pair)
        place = np.arange(encoded.pairs) - np.repeat(encoded.first_pair[:-1], counts)
        own = _mixed(np.repeat(keys, counts) + place.astype(np.uint64))
        return uniform(own, self.seed, NOISE) < self.label_noise

    def account(self, whole: EncodedComparisons, part: EncodedComparisons, swaps: np.ndarray) -> dict[str, Any]:
        """What was done, for the data report."""
        return {
            "train_fraction": self.train_fraction,
            "label_noise": self.label_noise,
            "seed": self.seed,
            "comparisons": {"all": len(whole), "trained_on": len(part)},
            "pairs": {"all": whole.pairs, "trained_on": part.pairs, "swapped": int(swaps.sum())},
        }


def account_text(account: dict[str, Any]) -> str:
    """An account of `Robustness` as a sentence."""
    comparisons, pairs = account["comparisons"], account["pairs"]
    return (
        f"robustness: trained on {comparisons['trained_on']:,} of {comparisons['all']:,} training comparisons, "
        f"{pairs['swapped']:,} of their {pairs['trained_on']:,} pairs with swapped sides (data.train_fraction "
        f"{account['train_fraction']:g}, data.label_noise {account['label_noise']:g}, seed {account['seed']})"
    )


def uniform(keys: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """A place in [0, 1) for each of n keys, (n,) uint64 -> (n,) float64, by SplitMix64 (Steele et al. 2014)."""
    state = keys.astype(np.uint64)
    for salt in (seed, purpose):
        state = _mixed(state ^ _mixed(np.asarray([salt], dtype=np.uint64)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around in silence
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def swapped(encoded: EncodedComparisons, swaps: np.ndarray) -> EncodedComparisons:
    """The comparisons with the sides of some pairs swapped, (P,) bool.

    The label is wrong, and all that was said with it: margin, target and scores stay with the side and do not follow
    the text, or an objective that reads them would be told which labels are wrong.
    """
    if not swaps.any():
        return encoded
    columns = dict(encoded.columns)
    for chosen, rejected in SIDES:
        if chosen in columns:
            both = columns[chosen], columns[rejected]
            columns[chosen], columns[rejected] = np.where(swaps, both[1], both[0]), np.where(swaps, both[0], both[1])
    winners = np.where(swaps, encoded.losers, encoded.winners)
    losers = np.where(swaps, encoded.winners, encoded.losers)
    return replace(encoded, columns=columns, winners=winners, losers=losers)


class PartOfEmbeddings:
    """The embeddings of some comparisons, out of those of all, which are computed and kept once for all fractions.

    Args:
        whole: the embeddings of all conversations.
        responses: (R,) int64, the place of each conversation among all.
    """

    def __init__(self, whole: Embeddings, responses: np.ndarray) -> None:
        self.whole = whole
        self.responses = responses

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.whole[self.responses[rows]]


def part_of_embeddings(whole: EncodedComparisons, part: EncodedComparisons) -> PartOfEmbeddings:
    """Those of `part`, comparisons of `whole`, whose own are known."""
    assert whole.embeddings is not None
    kept = np.searchsorted(whole.kept, part.kept)
    return PartOfEmbeddings(whole.embeddings, stretches(whole.first_response, kept))
