"""A Transformers model in two: the backbone, and what its own head on the embedding looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor, nn

from aplot_lightning.errors import UserError
from aplot_lightning.model.backbone.backbone import Backbone, Pooling
from aplot_lightning.model.configuration import is_decoder
from aplot_lightning.model.language_head import take_base

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# their own classification path picks the scored token by its distance from the row's end or by the pad id
POOLED_BY_PADDING = ("ctrl", "modernbert-decoder", "reformer", "xlnet")


@dataclass
class HeadShape:
    """The linear layer that the architecture itself would put on the embedding.

    Attributes:
        in_features: size of the embedding.
        bias: whether it has a constant term.
        weights: ``weight`` (1, in_features) and perhaps ``bias`` (1,) where the loaded model came with them, else None.
    """

    in_features: int
    bias: bool
    weights: dict[str, Tensor] | None = None


def split_classifier(
    model: PreTrainedModel, pooling: Pooling, absent: set[str] | None = None
) -> tuple[Backbone, HeadShape]:
    """Splits a model into backbone and head; `absent` are the keys that its files lacked, None for all of them."""
    config = model.config
    if pooling not in get_args(Pooling):
        raise UserError(f"model.pooling {pooling!r} is unknown: choose one of {', '.join(get_args(Pooling))}")
    if config.is_encoder_decoder:
        raise UserError(f"model.backbone: {config.model_type} is an encoder-decoder; give an encoder or a decoder")
    if not can_classify(config):
        return _without_classifier(model, pooling)
    path, head = classifier_of(model)
    own: Pooling = "last" if path == "score" else "classification"
    chosen: Pooling = own if pooling == "auto" else pooling
    if chosen == "classification":
        if own != "classification":
            raise UserError(
                f"model.pooling: {config.model_type} is a decoder, its classification path is pooling: last"
            )
        if config.model_type in POOLED_BY_PADDING:
            raise UserError(
                f"model.pooling: the classification path of {config.model_type} reads padding; set it to last or mean"
            )
    loaded = chosen == own and absent is not None and f"{path}.weight" not in absent
    weights = {name: value.detach().float() for name, value in head.named_parameters()} if loaded else None
    if chosen == "classification":
        model.set_submodule(path, nn.Identity())
        return Backbone(model, chosen), HeadShape(head.in_features, head.bias is not None, weights)
    size = head.in_features if own == "last" else _state_size(model)
    return Backbone(_without_pooler(model.base_model), chosen), HeadShape(size, head.bias is not None, weights)


def _without_classifier(model: PreTrainedModel, pooling: Pooling) -> tuple[Backbone, HeadShape]:
    if pooling == "classification":
        raise UserError(f"model.pooling: {model.config.model_type} has no classification path; set it to last or mean")
    chosen: Pooling = ("last" if is_decoder(model.config) else "mean") if pooling == "auto" else pooling
    return Backbone(_without_pooler(model), chosen), HeadShape(_state_size(model), bias=False)


def classifier_of(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """The one linear layer outside the base model that yields the single label, and its path."""
    inside = f"{model.base_model_prefix}."
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and not path.startswith(inside)
    ]
    if len(found) != 1:
        raise UserError(f"model.backbone: the classification head of {type(model).__name__} was not found")
    return found[0]


def _without_pooler(model: Any) -> PreTrainedModel:
    """Drops a pooling layer that nobody would read: unused weights upset distributed training."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def split_causal(causal: PreTrainedModel, pooling: Pooling) -> tuple[Backbone, HeadShape]:
    """Splits a causal language model into a backbone that holds its language-model head, and a fresh reward head."""
    output, embeddings = causal.get_output_embeddings(), causal.get_input_embeddings()
    base, lm_head, size = take_base(causal)
    # files may hold a head of their own although their config says tied; a checkpoint must build what is here
    causal.config.get_text_config().tie_word_embeddings = output.weight is embeddings.weight
    return Backbone(base, "last" if pooling == "auto" else pooling, lm_head), HeadShape(size, bias=False)


def can_classify(config: PreTrainedConfig) -> bool:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def _state_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)
