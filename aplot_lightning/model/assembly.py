"""The parts of a reward model, read from a folder or the hub or built from a checkpoint's description."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aplot_lightning.errors import UserError
from aplot_lightning.model.backbone import Backbone, Pooling, build_backbone, load_backbone
from aplot_lightning.model.configuration import (
    config_from_dict,
    prepare_config,
    read_config,
    saved_dtype,
    torch_dtype,
)
from aplot_lightning.model.heads import Head, build_head, make_head
from aplot_lightning.model.locate import ModelPlace
from aplot_lightning.model.lora import merged
from aplot_lightning.model.tokenizer import load_tokenizer, one_line, unpack_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a reward model is put together from.

    Attributes:
        backbone: tokens to embeddings.
        head: embeddings to rewards.
        tokenizer: the backbone's.
        dtype: the name of the backbone's dtype.
        fresh: the head's weights came with nothing that was read.
    """

    backbone: Backbone
    head: Head
    tokenizer: PreTrainedTokenizerFast
    dtype: str
    fresh: bool = False


def read_parts(
    place: ModelPlace,
    key: str,
    *,
    dtype: str,
    pooling: Pooling = "auto",
    attention: str | None = None,
    dropout: float = 0.0,
    head: Head | None = None,
    head_seed: int | None = None,
    keep_lm_head: bool = False,
) -> Parts:
    """The parts of a model from anything but a checkpoint; arguments as in `RewardModel.from_backbone`.

    Args:
        place: where the model is.
        key: what the user set, for messages.
    """
    config = read_config(place, key)
    dtype = saved_dtype(config) if dtype == "auto" else dtype
    weights = torch_dtype(dtype)
    prepare_config(config, attention=attention, dropout=dropout)
    tokenizer = load_tokenizer(place.source, key, place.name)
    if place.kind == "architecture":
        logger.info("%s holds no weights: the backbone starts from scratch", place.name)
        backbone, shape = build_backbone(config, pooling, weights, keep_lm_head=keep_lm_head)
    else:
        with seeded(head_seed):
            backbone, shape = load_backbone(place, config, pooling, weights, key, keep_lm_head=keep_lm_head)
    deviation = _fresh_deviation(config)
    made = make_head(head, shape.in_features, shape.bias, shape.weights, deviation=deviation, seed=head_seed)
    return Parts(backbone, made, tokenizer, dtype, shape.weights is None)


def restored_parts(
    description: Mapping[str, Any],
    state: Mapping[str, Tensor] | None,
    *,
    dtype: str | None,
    attention: str | None,
    dropout: float | None,
    head: Head | None,
    head_seed: int | None,
    keep_lm_head: bool | None,
    name: str,
) -> tuple[Mapping[str, Any], Parts, Mapping[str, Tensor] | None]:
    """The parts of the model that `RewardModel.describe` described; arguments as in `RewardModel.from_description`.

    Returns:
        The description and the weights as those of a model without adapters, where there are weights, and the parts
        that these weights are for; without them the head's are fresh.

    Raises:
        UserError: the description is not whole, or does not fit the weights.
    """
    if state is not None:
        description, state = merged(description, state, name)
    described = bool(description.get("keep_lm_head", False))
    kept = described if keep_lm_head is None else keep_lm_head and described
    parts = _described_parts(
        description,
        dtype=dtype,
        attention=attention,
        dropout=dropout,
        keep_lm_head=kept,
        empty=state is not None,
        name=name,
    )
    deviation = _fresh_deviation(parts.backbone.config)
    if state is None:
        parts.head.reset(deviation, None if head_seed is None else torch.Generator().manual_seed(head_seed))
    elif described and not kept:
        state = {key: value for key, value in state.items() if not key.startswith("backbone.lm_head.")}
    if head is not None:
        parts.head, state = _with_head(head, parts.head, state, deviation, head_seed)
    return description, parts, state


def _described_parts(
    description: Mapping[str, Any],
    *,
    dtype: str | None,
    attention: str | None,
    dropout: float | None,
    keep_lm_head: bool,
    empty: bool,
    name: str,
) -> Parts:
    """The parts of the model that `RewardModel.describe` described; its head has no weights yet.

    Args:
        description: from `RewardModel.describe`, of any source.
        dtype: None or ``auto`` for the described one.
        attention: None for the default.
        dropout: None for the described one.
        keep_lm_head: builds the language-model head too.
        empty: leaves the backbone's weights uninitialised.
        name: what the model is called in messages.

    Raises:
        UserError: the description is not whole.
    """
    dtype = str(description.get("dtype")) if dtype in (None, "auto") else dtype
    weights = torch_dtype(dtype)
    try:
        config = config_from_dict(description["config"])
        prepare_config(config, attention=attention, dropout=dropout)
        backbone, _ = build_backbone(config, description["pooling"], weights, keep_lm_head=keep_lm_head, empty=empty)
        head = build_head(description["head"])
        tokenizer = unpack_tokenizer(description["tokenizer"], description["config"], name)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: the checkpoint's description of its model is damaged: {one_line(error)}") from error
    return Parts(backbone, head, tokenizer, dtype)


def _with_head(
    head: Head, own: Head, state: Mapping[str, Tensor] | None, deviation: float, seed: int | None
) -> tuple[Head, Mapping[str, Tensor] | None]:
    """A model's `own` head where it is of the shape of `head`, else a fresh `head` and the state with its weights."""
    fresh = make_head(head, own.in_features, own.has_bias, None, deviation=deviation, seed=seed)
    if fresh.describe() == own.describe():
        return own, state
    logger.info("the model's %s head gives way to a fresh %s head", own.kind, fresh.kind)
    if state is None:
        return fresh, None
    kept = {name: value for name, value in state.items() if not name.startswith("head.")}
    return fresh, {**kept, **{f"head.{name}": value for name, value in fresh.state_dict().items()}}


def _fresh_deviation(config: PreTrainedConfig) -> float:
    """The standard deviation that an architecture draws fresh weights with."""
    return float(getattr(config.get_text_config(), "initializer_range", 0.02))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """torch's global random state from `seed` for a while; nothing happens for None."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
