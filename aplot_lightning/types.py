"""The values that travel between rooms: a Batch of tokens goes into the model, Scores come out.

A batch holds R responses and n preference pairs over them. The pairs are kept apart from the tokens, because the
objective sees the pairs and scores of a whole optimizer batch while the model sees one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Pairs:
    """n preference pairs over the R responses of a batch.

    Attributes:
        chosen: (n,) int64, the row of each pair's chosen response.
        rejected: (n,) int64, the row of each pair's rejected response.
        columns: what the data says of each pair, (n,) each. Known names: ``index`` (int64, the pair's place in
            its data set), ``source`` (int64, a number for each source of the data set), ``weight``, ``chosen_length``
            and ``rejected_length`` (tokens of the response), ``chosen_suffix`` and ``rejected_suffix`` (tokens after
            the first one in which the two differ), ``margin``, ``target``, ``chosen_score``, ``rejected_score``
            (float32). A column that the data does not have is absent.
    """

    chosen: Tensor
    rejected: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.chosen.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Pairs:
        """The same pairs with `function` applied to every tensor."""
        columns = {name: function(column) for name, column in self.columns.items()}
        return Pairs(function(self.chosen), function(self.rejected), columns)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Pairs:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def select(self, index: Tensor) -> Pairs:
        """The pairs at `index` (int64 or bool), over the same responses."""
        return self.map(lambda tensor: tensor[index])

    @staticmethod
    def concatenate(parts: Sequence[Pairs], responses: Sequence[int]) -> Pairs:
        """Pairs of several batches over their concatenated responses; `responses` counts each batch's rows."""
        starts = [sum(responses[:position]) for position in range(len(parts))]
        names = set.intersection(*(set(part.columns) for part in parts))
        return Pairs(
            torch.cat([part.chosen + start for part, start in zip(parts, starts, strict=True)]),
            torch.cat([part.rejected + start for part, start in zip(parts, starts, strict=True)]),
            {name: torch.cat([part.columns[name] for part in parts]) for name in sorted(names)},
        )


@dataclass
class Batch:
    """One micro-batch: R conversations as rows padded on the right, and the pairs among them.

    Attributes:
        input_ids: (R, length) int64.
        attention_mask: (R, length) int64, 1 on real tokens.
        end: (R,) int64, the position of each row's scored token, its last real one.
        pairs: the n preference pairs; n may be 0 for a batch that only keeps a rank in step with the others.
        start: (R,) int64, the position of the first token of each row's response; None where nobody asks for it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    end: Tensor
    pairs: Pairs
    start: Tensor | None = None

    @property
    def responses(self) -> int:
        return self.input_ids.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            function(self.input_ids),
            function(self.attention_mask),
            function(self.end),
            self.pairs.map(function),
            None if self.start is None else function(self.start),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass
class Scores:
    """What the model says of R responses: named float tensors of shape (R, ...).

    ``rewards`` (R,) and ``embeddings`` (R, d) are always there, at least float32; a head or an objective may need more
    beside them (a second reward, a log-probability, ...).
    """

    tensors: dict[str, Tensor]

    @property
    def rewards(self) -> Tensor:
        return self.tensors["rewards"]

    @property
    def embeddings(self) -> Tensor:
        return self.tensors["embeddings"]

    def __len__(self) -> int:
        return self.rewards.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Scores:
        return Scores({name: function(tensor) for name, tensor in self.tensors.items()})

    def detach(self) -> Scores:
        return self.map(lambda tensor: tensor.detach())

    def pairs(self, pairs: Pairs) -> tuple[Scores, Scores]:
        """The scores of the chosen and of the rejected responses side by side, (n, ...) each."""
        return self.map(lambda tensor: tensor[pairs.chosen]), self.map(lambda tensor: tensor[pairs.rejected])

    @staticmethod
    def concatenate(parts: Sequence[Scores]) -> Scores:
        return Scores({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})
