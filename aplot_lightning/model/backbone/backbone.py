"""The backbone as a module: tokens to embeddings, by any of three ways of pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from aplot_lightning.model.language_head import LanguageModelHead
from aplot_lightning.model.tree import PackedRow, Packing, run_packed, start_packing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Pooling = Literal["auto", "last", "classification", "mean"]

POSITION_TABLES = ("wpe", "position_embeddings", "embed_positions", "positions_embed")


class BackboneOutput(NamedTuple):
    """What a backbone gives for R rows.

    Attributes:
        embeddings: (R, d), float32 (float64 from a float64 model).
        states: (R, length, d) in the model's dtype, the last hidden states; None for the pooling ``classification``
            and for packed rows.
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
        self._packing: Packing | None = None

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

    @property
    def matrix_weights(self) -> int:
        """Weights that every token is multiplied with: of matrices, without tables that are only looked up.

        Without the last layer, where packed rows go through it with their scored tokens alone.
        """
        return sum(parameter.numel() for parameter in self._matrices())

    @property
    def trained_matrix_weights(self) -> int:
        """Those of `matrix_weights` that get gradients."""
        return sum(parameter.numel() for parameter in self._matrices() if parameter.requires_grad)

    def _matrices(self) -> list[nn.Parameter]:
        skipped = {id(p) for m in self.model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        if self._packing is not None and self._packing.last_layer is not None:
            skipped |= {id(p) for p in self.model.get_submodule(self._packing.last_layer).parameters()}
        return [p for p in self.model.parameters() if p.ndim > 1 and id(p) not in skipped]

    @property
    def packing(self) -> Packing:
        """How it stands to packed rows: found out when it is first asked for, which makes it ready for them."""
        if self._packing is None:
            self._packing = self._start_packing()
        return self._packing

    def _start_packing(self) -> Packing:
        from aplot_lightning.model.configuration import is_decoder

        if not is_decoder(self.config):
            return Packing(f"{self.config.model_type} is an encoder, whose tokens see what comes after them")
        if self.pooling != "last":
            return Packing(f"model.pooling {self.pooling} reads every token of a conversation")
        if self.lm_head is not None:
            return Packing("model.keep_lm_head reads every token of a conversation")
        packing = start_packing(self.model)
        if packing.refusal is None:
            return packing
        return Packing(f"{self.config.model_type} does not take packed rows: {packing.refusal}")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, end: Tensor, row: PackedRow | None = None
    ) -> BackboneOutput:
        """Embeddings and states of R conversations.

        Args:
            input_ids: (R, length) int64, padded on the right with any id; packed (1, T).
            attention_mask: (R, length) int64, 1 on real tokens; None when packed.
            end: (R,) int64, the scored token's place in its row.
            row: how a packed row hangs together; None for padded rows.

        Raises:
            ValueError: a packed row for a backbone that takes none.
        """
        if row is not None:
            return BackboneOutput(self._packed(input_ids, row), None)
        assert attention_mask is not None
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooling == "classification":
            return BackboneOutput(_widen(output.logits), None)
        states = output.last_hidden_state
        with torch.autocast(input_ids.device.type, enabled=False):
            return BackboneOutput(pool(states, attention_mask, end, self.pooling), states)

    def _packed(self, input_ids: Tensor, row: PackedRow) -> Tensor:
        if self.packing.refusal is not None:
            raise ValueError(f"a packed batch, but {self.packing.refusal}")
        return _widen(run_packed(self.model, input_ids, row, scored_only=self.packing.last_layer is not None))


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
