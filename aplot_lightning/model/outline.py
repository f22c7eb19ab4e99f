"""What the data needs to know of a model, without its weights: the tokenizer and how many positions there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aplot_lightning.errors import UserError
from aplot_lightning.model.backbone import build_backbone
from aplot_lightning.model.checkpoint import read_checkpoint
from aplot_lightning.model.configuration import config_from_dict, prepare_config, read_config
from aplot_lightning.model.locate import locate_model
from aplot_lightning.model.tokenizer import check_vocabulary, load_tokenizer, one_line, unpack_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass
class Outline:
    """A model without weights.

    Attributes:
        tokenizer: a fast tokenizer that has a padding token.
        position_limit: tokens for which there are learned positions; None where positions are computed.
    """

    tokenizer: PreTrainedTokenizerFast
    position_limit: int | None


def read_outline(name: str, key: str) -> Outline:
    """The outline of a model: `RewardModel.from_backbone` would have the same tokenizer and positions.

    The positions are counted in the backbone's modules on the meta device, where tensors have shapes and no content.

    Args:
        name: a folder, run, checkpoint, hub name, or a built-in name.
        key: what the user set, for messages.

    Raises:
        UserError: there is no such model, or its config or tokenizer cannot be read.
    """
    place = locate_model(name, key)
    if place.kind == "checkpoint":
        description, _ = read_checkpoint(place.source, key)  # mapped: the weights stay on the disk
        try:
            config = config_from_dict(description["config"])
            tokenizer = unpack_tokenizer(description["tokenizer"], description["config"], place.source)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{key}: {place.source}: the checkpoint's description of its model is damaged: {one_line(error)}"
            ) from error
    else:
        config = read_config(place, key)
        tokenizer = load_tokenizer(place.source, key, place.name)
    check_vocabulary(tokenizer, config, place.name)
    prepare_config(config, attention=None, dropout=None)
    with torch.device("meta"):
        backbone, _ = build_backbone(config, "auto", torch.float32, empty=True)
    return Outline(tokenizer, backbone.position_limit)
