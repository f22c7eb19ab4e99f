"""The values that rooms exchange: a Batch of tokens goes into the model, Scores come out.

A batch has R responses and n preference pairs over them. The pairs are separate from the tokens, because the objective
sees the pairs and scores of a whole optimizer batch, but the model sees one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Pairs:
    """n preference pairs over the R responses of a batch.

    Attributes:
        chosen: (n,) int64, the row of each pair's chosen response.
        rejected: (n,) int64, the row of each pair's rejected response.
        columns: values of each pair from the data, (n,) each. Names: ``index`` (int64, the pair's index in its
            data set), ``source`` (int64, a number for each source of the data set), ``weight``, ``chosen_length``
            and ``rejected_length`` (tokens of the response), ``chosen_suffix`` and ``rejected_suffix`` (tokens after
            the first difference), ``margin``, ``target``, ``chosen_score``, ``rejected_score``
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


@dataclass(frozen=True)
class Tree:
    """How the tokens of a packed row hang together; plain numbers, so that reading it never waits for a device.

    The row holds the root, which all its conversations share, then each comparison: its prefix, and one suffix a
    response, the longest first and the others in the order of the responses. A response's conversation is root,
    prefix and suffix.

    Attributes:
        root: tokens of the root.
        comparisons: for each comparison the tokens of its prefix, and those of its suffixes in the order of the
            batch's responses; no suffix is empty.
    """

    root: int
    comparisons: tuple[tuple[int, tuple[int, ...]], ...]

    @staticmethod
    def row_order(suffixes: Sequence[int]) -> list[int]:
        """The places of a comparison's responses in the order in which their suffixes stand in the row."""
        longest = max(range(len(suffixes)), key=suffixes.__getitem__)
        return [longest, *(place for place in range(len(suffixes)) if place != longest)]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every response's conversation, R of them."""
        return tuple(self.root + prefix + suffix for prefix, suffixes in self.comparisons for suffix in suffixes)


@dataclass
class Batch:
    """One micro-batch: R conversations and the pairs among them, in one of three layouts.

    Padded: a row a conversation, filled up on the right. Packed: one row in which conversations share what they begin
    with, and nothing is filled up (see Tree). Cached: embeddings that a backbone gave before, and no tokens.

    Attributes:
        input_ids: (R, length) int64; packed (1, T); cached (R, 0).
        attention_mask: (R, length) int64, 1 on real tokens; None when packed or cached.
        end: (R,) int64, the place of each conversation's scored token, its last real one, in its row.
        pairs: the n preference pairs; n may be 0 for a batch that only keeps a rank in step with the others.
        start: (R,) int64, the position of the first token of each row's response; None where nobody asks for it.
        position_ids: (1, T) int64, each token's position in its conversation; packed only.
        tree: how the packed row hangs together.
        embeddings: (R, d) float, cached only.
        lengths: tokens of every conversation, R numbers, for those who count; empty in a batch that nobody counts.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    end: Tensor
    pairs: Pairs
    start: Tensor | None = None
    position_ids: Tensor | None = None
    tree: Tree | None = None
    embeddings: Tensor | None = None
    lengths: tuple[int, ...] = ()

    @staticmethod
    def cached(embeddings: Tensor, pairs: Pairs) -> Batch:
        """A batch whose embeddings (R, d) are known already: a model only runs its head on it."""
        rows = embeddings.shape[0]
        ids = torch.zeros((rows, 0), dtype=torch.int64, device=embeddings.device)
        return Batch(ids, None, ids.new_zeros(rows), pairs, embeddings=embeddings)

    @property
    def responses(self) -> int:
        return self.end.shape[0]

    @property
    def computed_tokens(self) -> int:
        """Tokens that a backbone runs through for it, padding among them."""
        return self.input_ids.numel()

    @property
    def padding(self) -> int:
        """Tokens among the computed ones that stand for nothing."""
        return self.computed_tokens - sum(self.lengths) if self.attention_mask is not None else 0

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `function` applied to every tensor."""

        def apply(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        return replace(
            self,
            input_ids=function(self.input_ids),
            attention_mask=apply(self.attention_mask),
            end=function(self.end),
            pairs=self.pairs.map(function),
            start=apply(self.start),
            position_ids=apply(self.position_ids),
            embeddings=apply(self.embeddings),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass
class Scores:
    """The model's output for R responses: named float tensors of shape (R, ...).

    ``rewards`` (R,) and ``embeddings`` (R, d) are always present, at least float32. A head may add more tensors, such
    as a second reward or a log-probability.
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
