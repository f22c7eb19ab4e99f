"""The backbone as a module: tokens to embeddings, by any of three ways of pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from aplot_lightning.model.language_head import LanguageModelHead

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Pooling = Literal["auto", "last", "classification", "mean"]

POSITION_TABLES = ("wpe", "position_embeddings", "embed_positions", "positions_embed")


class BackboneOutput(NamedTuple):
    """What a backbone gives for R rows.

    Attributes:
        embeddings: (R, d), float32 (float64 from a float64 model).
        states: (R, length, d) in the model's dtype, the last hidden states; None for the pooling ``classification``.
    """

    embeddings: Tensor
    states: Tensor | None


class Backbone(nn.Module):
    """A Hugging Face model and its pooling: tokens in, one float32 embedding a row out.

    Args:
        model: the base model, or for ``classification`` the sequence-classification model with its head taken out.
        pooling: ``last`` (the state at the scored token), ``classification`` (what the architecture's own head would
            read) or ``mean`` (over the row's real tokens).
        lm_head: the model's language-model head, where it is kept; it reads the states, and `forward` leaves it alone.
    """

    def __init__(self, model: PreTrainedModel, pooling: Pooling, lm_head: LanguageModelHead | None = None) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.lm_head = lm_head

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def position_limit(self) -> int | None:
        """Tokens for which there are learned positions; None where positions are computed."""
        limits = [
            # RoBERTa's positions begin behind the padding index, OPT's behind an offset
            table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1) - _offset(table)
            for name, table in self.model.named_modules()
            if isinstance(table, nn.Embedding) and name.rsplit(".", 1)[-1] in POSITION_TABLES
        ]
        return min(limits, default=None)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, end: Tensor) -> BackboneOutput:
        """Embeddings and states of R rows.

        Args:
            input_ids: (R, length) int64, padded on the right with any id.
            attention_mask: (R, length) int64, 1 on real tokens.
            end: (R,) int64, the scored token's position.
        """
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooling == "classification":
            return BackboneOutput(_widen(output.logits), None)
        states = output.last_hidden_state
        with torch.autocast(input_ids.device.type, enabled=False):
            return BackboneOutput(pool(states, attention_mask, end, self.pooling), states)


def pool(states: Tensor, attention_mask: Tensor, end: Tensor, pooling: Pooling) -> Tensor:
    """One state a row, at least float32: the one at `end`, or the mean over the mask. By mask or index, never by id.

    Args:
        states: (R, length, d) last hidden states.
        attention_mask: (R, length) 1 on real tokens.
        end: (R,) position of the scored token.
        pooling: ``last`` or ``mean``.
    """
    if pooling == "last":
        return _widen(states[torch.arange(states.shape[0], device=states.device), end])
    states = _widen(states)
    mask = attention_mask.to(states.dtype).unsqueeze(-1)
    return (states * mask).sum(1) / mask.sum(1)


def _offset(table: nn.Embedding) -> int:
    offset: Any = getattr(table, "offset", 0)
    return int(offset)


def _widen(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
