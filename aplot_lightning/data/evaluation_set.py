"""A named set of held-out comparisons: what the model reads of it, and what predictions are written with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from aplot_lightning.data.comparisons import Comparison, Message, prompt_key, response_text
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.evaluation.similarity import token_f1

PREDICTED = ("chosen_reward", "rejected_reward")


@dataclass
class EvaluationSet:
    """A named set of held-out comparisons.

    Attributes:
        name: the stem of its metrics: ``validation``, ``id``, ``ood/NAME`` or ``ood_validation/NAME``.
        comparisons: as they were read, for the texts of predictions and worst errors.
        encoded: the usable ones of them as tokens. Its columns get what metrics need of each pair: ``prompt`` (a hash
            of the prompt, int64), ``chosen_characters`` and ``rejected_characters`` (int64), ``similarity`` (token F1
            of the two texts).
    """

    name: str
    comparisons: Sequence[Comparison]
    encoded: EncodedComparisons

    def __post_init__(self) -> None:
        self._comparison_of = np.repeat(self.encoded.kept, np.diff(self.encoded.first_pair))
        pairs = [self._pair(place) for place in range(self.encoded.pairs)]
        texts = [(response_text(c, winner), response_text(c, loser)) for c, winner, loser in pairs]
        prompts = [int.from_bytes(prompt_key(c)[:8], "big", signed=True) for c, _, _ in pairs]
        self.encoded.columns |= {
            "prompt": np.asarray(prompts, dtype=np.int64),
            "chosen_characters": np.asarray([len(chosen) for chosen, _ in texts], dtype=np.int64),
            "rejected_characters": np.asarray([len(rejected) for _, rejected in texts], dtype=np.int64),
            "similarity": np.asarray([token_f1(*both) for both in texts], dtype=np.float32),
        }

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

        pairs = [self._pair(place) for place in table["index"].tolist()]
        subsets = [comparison.subset for comparison, _, _ in pairs]
        columns: dict[str, Any] = {
            "id": [_pair_id(*pair) for pair in pairs],
            "prompt": table["prompt"].cpu().numpy(),
            "subset": subsets,
            **{name: table[name].cpu().double().numpy() for name in (*PREDICTED, "target", "similarity")},
            **{name: table[name].cpu().numpy() for name in ("chosen_characters", "rejected_characters")},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return subsets

    def worst_errors(self, table: Mapping[str, Tensor], most: int) -> list[dict[str, Any]]:
        """The pairs that the model gets most wrong, worst first, with their texts; a target of 0.5 cannot be wrong."""
        side = (2 * table["target"] - 1).sign()
        gaps = (table["chosen_reward"] - table["rejected_reward"]) * side
        wrong = ((gaps <= 0) & (side != 0)).nonzero()[:, 0]
        errors = []
        for row in wrong[gaps[wrong].argsort(stable=True)][:most].tolist():
            comparison, winner, loser = self._pair(int(table["index"][row]))
            errors.append(
                {
                    "set": self.name,
                    "id": _pair_id(comparison, winner, loser),
                    "subset": comparison.subset,
                    "prompt": _transcript(comparison.prompt),
                    "chosen": response_text(comparison, winner),
                    "rejected": response_text(comparison, loser),
                    **{name: float(table[name][row]) for name in PREDICTED},
                }
            )
        return errors


def _pair_id(comparison: Comparison, winner: int, loser: int) -> str:
    return comparison.id if len(comparison.pairs) == 1 else f"{comparison.id}:{winner}>{loser}"


def _transcript(prompt: Sequence[Message]) -> str:
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
