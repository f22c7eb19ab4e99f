"""A named set of held-out comparisons: what the model reads of it, and what predictions are written with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from aplot_lightning.data.comparisons import Comparison, Message, response_text
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.preparation import facts_of, held_out_columns, labels

PREDICTED = ("chosen_reward", "rejected_reward")


@dataclass
class EvaluationSet:
    """A named set of held-out comparisons.

    Attributes:
        name: the stem of its metrics: ``validation``, ``id``, ``ood/NAME`` or ``ood_validation/NAME``.
        comparisons: as they were read, for the texts of predictions and worst errors; stored ones are decoded when
            they are asked for.
        encoded: the usable ones of them as tokens. Its columns have what metrics need of each pair: ``prompt`` (a hash
            of the prompt, int64), ``chosen_characters`` and ``rejected_characters`` (int64), ``similarity`` (token F1
            of the two texts); they are made of the texts where they are not there.
    """

    name: str
    comparisons: Sequence[Comparison]
    encoded: EncodedComparisons

    def __post_init__(self) -> None:
        self._comparison_of = np.repeat(self.encoded.kept, np.diff(self.encoded.first_pair))
        if "similarity" not in self.encoded.columns:
            used = [self.comparisons[place] for place in self.encoded.kept]
            self.encoded.columns |= held_out_columns(facts_of(used), np.arange(len(used)))

    def _pair(self, place: int) -> tuple[Comparison, int, int]:
        """The comparison of a pair, and the pair's winner and loser in it."""
        comparison = self.comparisons[self._comparison_of[place]]
        return comparison, int(self.encoded.winners[place]), int(self.encoded.losers[place])

    def write_predictions(self, path: Path, table: Mapping[str, Tensor]) -> list[str]:
        """Writes the predictions of an evaluation as Parquet and returns the subset of each row.

        Args:
            path: the file, in a folder that is made if need be.
            table: 1-D tensors, ``index`` (places among the set's pairs) and a column each.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        index = table["index"].cpu().numpy()
        subsets = labels(self.comparisons, "subset", self._comparison_of[index])
        columns: dict[str, Any] = {
            "id": self._pair_ids(index),
            "prompt": table["prompt"].cpu().numpy(),
            "subset": subsets,
            **{name: table[name].cpu().double().numpy() for name in (*PREDICTED, "target", "similarity")},
            **{name: table[name].cpu().numpy() for name in ("chosen_characters", "rejected_characters")},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return subsets

    def _pair_ids(self, index: np.ndarray) -> list[str]:
        """A name for each pair: its comparison's, with the places of its responses where that has several pairs."""
        names = labels(self.comparisons, "id", self._comparison_of[index])
        several = np.repeat(np.diff(self.encoded.first_pair), np.diff(self.encoded.first_pair))[index] > 1
        sides = zip(self.encoded.winners[index].tolist(), self.encoded.losers[index].tolist(), strict=True)
        return [
            f"{name}:{winner}>{loser}" if many else name
            for name, many, (winner, loser) in zip(names, several.tolist(), sides, strict=True)
        ]

    def worst_errors(self, table: Mapping[str, Tensor], most: int) -> list[dict[str, Any]]:
        """The pairs that the model gets most wrong, worst first, with their texts; a target of 0.5 cannot be wrong."""
        side = (2 * table["target"] - 1).sign()
        gaps = (table["chosen_reward"] - table["rejected_reward"]) * side
        wrong = ((gaps <= 0) & (side != 0)).nonzero()[:, 0]
        errors = []
        for row in wrong[gaps[wrong].argsort(stable=True)][:most].tolist():
            pair = int(table["index"][row])
            comparison, winner, loser = self._pair(pair)
            errors.append(
                {
                    "set": self.name,
                    "id": self._pair_ids(np.asarray([pair]))[0],
                    "subset": comparison.subset,
                    "prompt": _transcript(comparison.prompt),
                    "chosen": response_text(comparison, winner),
                    "rejected": response_text(comparison, loser),
                    **{name: float(table[name][row]) for name in PREDICTED},
                }
            )
        return errors


def _transcript(prompt: Sequence[Message]) -> str:
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
