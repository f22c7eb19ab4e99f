"""Which comparisons are trained on and which are held out, and what becomes an evaluation set.

A share of the training prompts is held out by a fixed hash of the first user turn, so that no seed, order or batch size
moves a prompt from one part to another, and a larger share takes what a smaller one has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from aplot_lightning.data.comparisons import Comparison, first_user_turn
from aplot_lightning.data.evaluation_set import EvaluationSet
from aplot_lightning.data.preparation import Corpus
from aplot_lightning.data.preparation.facts import hash_share
from aplot_lightning.errors import UserError

OF_TRAINING = ("validation", "id")  # the names of the sets that are held out of the training prompts


@dataclass(frozen=True)
class HeldOut:
    """The shares of the training prompts that are held out.

    Attributes:
        validation: the share that selects checkpoints and configs.
        id: the share that is only reported.

    Raises:
        UserError: a share that is none, or two that leave nothing to train on.
    """

    validation: float = 0.05
    id: float = 0.05

    def __post_init__(self) -> None:
        for key, share in {"data.validation_share": self.validation, "data.id_share": self.id}.items():
            if not 0 <= share < 1:
                raise UserError(f"{key} is {share}: give a share of the training prompts, from 0 to below 1")
        if self.validation + self.id >= 1:
            raise UserError(
                "data.validation_share and data.id_share leave nothing to train on: they add up to 1 or more"
            )

    def holds(self, comparison: Comparison) -> bool:
        """Whether a training comparison is held out, for one set or the other."""
        return hash_share(first_user_turn(comparison)) < self.validation + self.id

    def parts(self, corpus: Corpus) -> dict[str, np.ndarray]:
        """The usable comparisons of validation, id and train, as their places in the training corpus (int64 each)."""
        usable = corpus.usable()
        part = np.searchsorted([self.validation, self.validation + self.id], corpus.shares()[usable], "right")
        return {name: usable[part == number] for number, name in enumerate((*OF_TRAINING, "train"))}


def check_names(named: Mapping[str, Collection[str]]) -> None:
    """Refuses names of evaluation sets that cannot be told apart or cannot stand in a tag.

    Args:
        named: the names under ``data.ood`` and ``data.ood_validation``.

    Raises:
        UserError: such a name.
    """
    both = sorted(set.intersection(*map(set, named.values())))
    if both:
        raise UserError(f"{both[0]!r} is in data.ood and in data.ood_validation: a set either tests or selects")
    for key, names in named.items():
        for name in names:
            if not name or set(name) & set("/\\") or name in OF_TRAINING:
                raise UserError(
                    f"{key}: {name!r} cannot name a set; use letters, digits and _ other than {', '.join(OF_TRAINING)}"
                )


def evaluation_set(name: str, corpus: Corpus, places: np.ndarray) -> EvaluationSet:
    """The comparisons at `places` (ascending) of a corpus, with all that metrics ask about them."""
    encoded = corpus.encoded(places)
    encoded.columns |= corpus.held_out_columns(places)
    encoded.kept = np.arange(len(places))
    return EvaluationSet(name, corpus.comparisons(places), encoded)
