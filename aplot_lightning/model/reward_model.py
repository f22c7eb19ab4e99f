"""The reward model: backbone, pooling and head; where it comes from, and scoring conversations with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aplot_lightning.data.comparisons import Message, RowError, conversation_of
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.errors import UserError
from aplot_lightning.model.assembly import Parts, read_parts, restored_parts, seeded
from aplot_lightning.model.backbone import Pooling
from aplot_lightning.model.checkpoint import FORMAT, read_checkpoint
from aplot_lightning.model.configuration import config_to_dict
from aplot_lightning.model.heads import Head
from aplot_lightning.model.locate import locate_model
from aplot_lightning.model.lora import LoRA, add_adapters, read_shape
from aplot_lightning.model.scoring import evaluating, packed_batches, padded_batches
from aplot_lightning.model.tokenizer import check_vocabulary, natural_length, one_line, pack_tokenizer
from aplot_lightning.model.tree import PackedRow
from aplot_lightning.types import Batch, Scores

FRESH_HEAD_SEED = 0  # of a head that a model needs for scoring and does not have


class RewardModel(nn.Module):
    """Gives every conversation a reward: backbone, pooling, and a head in float32.

    Made by `from_backbone` (to be trained) or `from_pretrained` (to be used).

    Attributes:
        backbone: tokens to embeddings.
        head: embeddings to rewards, and to what else an objective asks for.
        tokenizer: a fast tokenizer that has a padding token.
        max_length: tokens of a prompt with one response; None for no limit.
        truncation: what becomes of longer ones, as it was in training (see `ConversationEncoder`).
        frozen: the backbone is not trained (see `freeze_backbone`).
        lora: the shape of its adapters as primitives (see `add_lora`); None where it has none.
    """

    def __init__(self, parts: Parts, max_length: int | None, name: str) -> None:
        super().__init__()
        check_vocabulary(parts.tokenizer, parts.backbone.config, name)
        self.backbone = parts.backbone
        self.head = parts.head
        self.tokenizer = parts.tokenizer
        self.dtype = parts.dtype
        self.name = name
        self.truncation = "left"
        self.frozen = False
        self.lora: dict[str, Any] | None = None
        self._tokenizer_files: dict[str, str | bytes] | None = None
        natural = natural_length(self.tokenizer, self.backbone.config, self.backbone.position_limit)
        self.max_length = natural if max_length is None else max_length

    # Where a model comes from

    @classmethod
    def from_backbone(
        cls,
        name: str,
        *,
        pooling: Pooling = "auto",
        dtype: str = "float32",
        attention: str | None = None,
        dropout: float = 0.0,
        max_length: int | None = None,
        head: Head | None = None,
        head_seed: int | None = None,
        keep_lm_head: bool = False,
    ) -> RewardModel:
        """A model to be trained, in training mode.

        A reward model (a run, a checkpoint, a sequence classification model with one label) keeps its head; anything
        else gets a fresh one. A folder without weights is started from scratch.

        Args:
            name: a folder, run, checkpoint, hub name, or a built-in name (``world-decoder``).
            pooling: ``auto`` takes ``last`` for decoders and ``classification`` for encoders; or ``mean``.
            dtype: of the backbone's weights, ``auto`` for the one they were saved in; the head is float32 always.
            attention: ``eager``, ``sdpa``, ``flex_attention``, ``flash_attention_2`` or ``_3``; None for the default.
            dropout: the value of every dropout probability of the backbone.
            max_length: tokens of a prompt with one response; None for the most that the backbone is made for.
            head: which head to train, copied; one that differs from the model's own starts fresh. None for the model's
                own, or a linear one.
            head_seed: draws a fresh head from a generator of its own; None from torch's global random state.
            keep_lm_head: keeps and trains the language-model head of a decoder; `forward` then gives log_probability.

        Raises:
            UserError: there is no such model, it cannot be read, or an option does not suit it.
        """
        place = locate_model(name, "model.backbone")
        if place.kind == "checkpoint":
            description, state = read_checkpoint(place.source, "model.backbone")
            if pooling not in ("auto", description.get("pooling")):
                raise UserError(
                    f"model.pooling: {name!r} was trained with {description.get('pooling')}; leave it at auto"
                )
            if keep_lm_head and not description.get("keep_lm_head"):
                raise UserError(
                    f"model.keep_lm_head: {name!r} was saved without its language-model head; start from the "
                    "causal language model, or leave it false"
                )
            return cls.from_description(
                description,
                state,
                dtype=dtype,
                attention=attention,
                dropout=dropout,
                max_length=max_length,
                head=head,
                head_seed=head_seed,
                keep_lm_head=keep_lm_head,
                name=place.source,
            ).train()
        parts = read_parts(
            place,
            "model.backbone",
            pooling=pooling,
            dtype=dtype,
            attention=attention,
            dropout=dropout,
            head=head,
            head_seed=head_seed,
            keep_lm_head=keep_lm_head,
        )
        return cls(parts, max_length, place.name).train()

    @classmethod
    def from_pretrained(
        cls, name: str, *, dtype: str = "float32", max_length: int | None = None, key: str = "model"
    ) -> RewardModel:
        """A model to be used, in evaluation mode, without the language-model head that it may have been trained with.

        Args:
            name: a run directory (its best checkpoint, else its last), a checkpoint file, an exported or other Hugging
                Face folder, or a hub name. Without a reward head it gets a fresh one from a fixed seed, with a warning.
            dtype: of the backbone's weights; the head is float32 always.
            max_length: tokens of a prompt with one response; None for the run's own.
            key: what the user set, for messages.

        Raises:
            UserError: there is no such model, or it is damaged; a file that could run code is not read.
        """
        place = locate_model(name, key)
        if place.kind == "checkpoint":
            description, state = read_checkpoint(place.source, key)
            return cls.from_description(
                description, state, dtype=dtype, max_length=max_length, keep_lm_head=False, name=place.source
            ).eval()
        with seeded(FRESH_HEAD_SEED):
            parts = read_parts(place, key, dtype=dtype)
        if parts.fresh:
            missing = "weights" if place.kind == "architecture" else "reward head"
            warnings.warn(
                f"{name!r} has no {missing}: a fresh start from seed {FRESH_HEAD_SEED} stands in, rewards mean nothing",
                stacklevel=2,
            )
        return cls(parts, max_length, place.name).eval()

    @classmethod
    def from_description(
        cls,
        description: Mapping[str, Any],
        state: Mapping[str, Tensor] | None = None,
        *,
        dtype: str | None = None,
        attention: str | None = None,
        dropout: float | None = None,
        max_length: int | None = None,
        head: Head | None = None,
        head_seed: int | None = None,
        keep_lm_head: bool | None = None,
        name: str = "checkpoint",
    ) -> RewardModel:
        """The model that `describe` described, without any folder or hub.

        Adapters are merged into the weights; the model without weights has them still.

        Args:
            description: from `describe`.
            state: its weights (`state_dict`); without them the weights are fresh and are to be loaded.
            dtype: of the backbone's weights; None or ``auto`` for the described one.
            attention: as in `from_backbone`.
            dropout: as in `from_backbone`; None for the described one.
            max_length: None for the described one.
            head: as in `from_backbone`; None for the described one.
            head_seed: as in `from_backbone`.
            keep_lm_head: False leaves out the language-model head; None for what is described.
            name: what the model is called in messages.

        Raises:
            UserError: the description or the weights are not whole.
        """
        description, parts, state = restored_parts(
            description,
            state,
            dtype=dtype,
            attention=attention,
            dropout=dropout,
            head=head,
            head_seed=head_seed,
            keep_lm_head=keep_lm_head,
            name=name,
        )
        model = cls(parts, description.get("max_length") if max_length is None else max_length, name)
        model.truncation = description.get("truncation", "left")
        if state is not None:
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                raise UserError(f"{name}: the checkpoint's weights do not fit its model: {one_line(error)}") from error
        elif description.get("lora") is not None:
            model.add_lora(read_shape(description["lora"])[0])
        return model

    def describe(self) -> dict[str, Any]:
        """All that `from_description` needs beside the weights, as primitives (readable with ``weights_only=True``)."""
        if self._tokenizer_files is None:
            self._tokenizer_files = pack_tokenizer(self.tokenizer)
        return {
            "format": FORMAT,
            "config": config_to_dict(self.backbone.config),
            "tokenizer": dict(self._tokenizer_files),
            "pooling": self.pooling,
            "dtype": self.dtype,
            "max_length": self.max_length,
            "truncation": self.truncation,
            "head": self.head.describe(),
            "keep_lm_head": self.backbone.lm_head is not None,
            **({} if self.lora is None else {"lora": dict(self.lora)}),
        }

    # What a model is

    @property
    def pooling(self) -> str:
        return self.backbone.pooling

    @property
    def hidden_size(self) -> int:
        """Size d of the embeddings."""
        return self.head.in_features

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    @property
    def max_length(self) -> int | None:
        """Tokens of a prompt with one response. Raises UserError when set to more than there are positions for."""
        return self._max_length

    @max_length.setter
    def max_length(self, length: int | None) -> None:
        if length is not None and length < 1:
            raise UserError(f"max_length is {length}: it must be at least 1")
        limit = self.backbone.position_limit
        if limit is not None and (length is None or length > limit):
            raise UserError(f"max_length is {length}, but {self.name} has {limit} positions: set it to {limit} or less")
        self._max_length = length

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names of the tensors that Scores hold in training, known without running the model."""
        kept = {"log_probability"} if self.backbone.lm_head is not None else set()
        return self.head.tensor_names | kept | {"embeddings"}

    @property
    def head_is_linear(self) -> bool:
        """Whether rewards are one linear function of the embeddings, and the head gives nothing else."""
        return self.head.linear

    @property
    def packing_refusal(self) -> str | None:
        """Why the model takes no packed batches; None where it does. Found out when it is first asked for."""
        return self.backbone.packing.refusal

    @property
    def packs(self) -> bool:
        """Whether the model takes packed batches beside padded ones."""
        return self.packing_refusal is None

    # What a model does

    def freeze_backbone(self) -> None:
        """From now on only the head trains: the backbone's weights get no gradients, and it drops nothing."""
        self.frozen = True
        self.backbone.requires_grad_(False).eval()

    def add_lora(self, lora: LoRA) -> None:
        """From now on only adapters on the backbone's linear layers train, beside the head; see `add_adapters`.

        Raises UserError where PEFT is missing or no layer has the names that were given.
        """
        shape = add_adapters(self.backbone.model, lora)
        if self.backbone.lm_head is not None:
            self.backbone.lm_head.requires_grad_(False)
        self.lora = shape

    def train(self, mode: bool = True) -> RewardModel:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, batch: Batch) -> Scores:
        """Rewards (R,), embeddings (R, d) and what else the head gives, float32 whatever the backbone's precision.

        The batch may be padded, packed (where the model `packs`), or hold the embeddings already; the scores are the
        same up to rounding, and in the order of its responses.

        With the language-model head, and in training mode only, log_probability (R,) too: that of the responses which
        a pair has as chosen, and 0 for the others (see `LanguageModelHead`).
        """
        if batch.embeddings is None:
            row = None if batch.tree is None else PackedRow.of(batch)
            embeddings, states = self.backbone(batch.input_ids, batch.attention_mask, batch.end, row)
        else:
            embeddings, states = batch.embeddings, None
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            tensors = {**self.head(embeddings), "embeddings": embeddings}
        if self.training and self.backbone.lm_head is not None:
            tensors["log_probability"] = self.backbone.lm_head(states, batch)
        return Scores(tensors)

    def score(
        self, items: Sequence[Mapping[str, Any]], *, batch_size: int = 16, batch_tokens: int | None = None
    ) -> list[float]:
        """The reward of each item, in order; the same for every batch size and order.

        Args:
            items: ``{"prompt": str or messages, "response": str or messages}`` each.
            batch_size: items in one forward.
            batch_tokens: in its place, tokens in one forward, padding among them; one item always fits.

        Raises:
            UserError: an item cannot be read.
        """
        conversations = []
        for place, item in enumerate(items):
            try:
                conversations.append(conversation_of(item["prompt"], item["response"]))
            except (KeyError, RowError) as error:
                raise UserError(f"items[{place}] needs a prompt and a response: {one_line(error)}") from error
        rows = self.encode(conversations)
        return self.score_rows(rows, batch_size=batch_size, batch_tokens=batch_tokens)

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[np.ndarray]:
        """Token ids of whole conversations, (length,) int32 each: as in training, and cut where that drops a row."""
        truncation = "left" if self.truncation == "drop" else self.truncation
        return ConversationEncoder(self.tokenizer, self.max_length, truncation).encode_conversations(conversations)

    def score_rows(
        self, rows: Sequence[np.ndarray], *, batch_size: int = 16, batch_tokens: int | None = None
    ) -> list[float]:
        """The reward of each row of token ids, in order; the largest batches first, so that memory peaks at once.

        Where the model `packs`, rows that begin alike are computed together.
        """
        if not rows:
            return []
        if self.packs:
            batches = packed_batches(rows, batch_size, batch_tokens)
        else:
            batches = padded_batches(rows, batch_size, batch_tokens, self.tokenizer.pad_token_id)
        order: list[int] = []
        rewards: list[Tensor] = []
        with evaluating(self), torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            for places, batch in batches:
                order += places
                rewards.append(self(batch.to(self.device)).rewards)
        result = np.empty(len(rows))
        result[order] = torch.cat(rewards).cpu().numpy()
        return result.tolist()
