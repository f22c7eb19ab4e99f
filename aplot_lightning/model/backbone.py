"""From tokens to embeddings: any Hugging Face encoder or decoder, and the pooling on top of it.

An architecture's sequence-classification class is used where there is one, with its last linear layer taken out to be
the head of the reward model: put back, it makes a plain Transformers model with exactly the same rewards.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from aplot_lightning.errors import UserError
from aplot_lightning.model.locate import ModelPlace, not_on_hub
from aplot_lightning.model.tokenizer import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Pooling = Literal["auto", "last", "classification", "mean"]

# their own classification path picks the scored token by its distance from the row's end or by the pad id
POOLED_BY_PADDING = ("ctrl", "modernbert-decoder", "reformer", "xlnet")
POSITION_TABLES = ("wpe", "position_embeddings", "embed_positions", "positions_embed")


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


class Backbone(nn.Module):
    """A Hugging Face model and its pooling: tokens in, one float32 embedding a row out.

    Args:
        model: the base model, or for ``classification`` the sequence-classification model with its head taken out.
        pooling: ``last`` (the state at the scored token), ``classification`` (what the architecture's own head would
            read) or ``mean`` (over the row's real tokens).
    """

    def __init__(self, model: PreTrainedModel, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

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

    def forward(self, input_ids: Tensor, attention_mask: Tensor, end: Tensor) -> Tensor:
        """Embeddings (R, d), float32 (float64 from a float64 model).

        Args:
            input_ids: (R, length) int64, padded on the right with any id.
            attention_mask: (R, length) int64, 1 on real tokens.
            end: (R,) int64, the scored token's position.
        """
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooling == "classification":
            return _widen(output.logits)
        with torch.autocast(input_ids.device.type, enabled=False):
            return pool(output.last_hidden_state, attention_mask, end, self.pooling)


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


def build_backbone(
    config: PreTrainedConfig, pooling: Pooling, dtype: torch.dtype, empty: bool = False
) -> tuple[Backbone, HeadShape]:
    """A backbone of this config with fresh weights from torch's global random state.

    Args:
        config: already prepared for one label.
        pooling: how rows become embeddings.
        dtype: of the weights.
        empty: leaves the weights uninitialised, for a caller that loads all of them at once.

    Raises:
        UserError: the config cannot be built, or not with this pooling or attention.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.initialization import no_init_weights

    loader = AutoModelForSequenceClassification if _can_classify(config) else AutoModel
    try:
        with quiet_transformers(), no_init_weights() if empty else nullcontext():
            model = loader.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # ValueError or ImportError for attention; anything for sizes that do not fit
        raise UserError(f"model.backbone: {config.model_type} could not be built: {one_line(error)}") from error
    return _take_apart(model, pooling)


def load_backbone(
    place: ModelPlace, config: PreTrainedConfig, pooling: Pooling, dtype: torch.dtype, key: str
) -> tuple[Backbone, HeadShape]:
    """A backbone with the weights of a folder or hub model, read from safetensors only.

    Weights that the architecture's classification path needs and the files lack come from torch's global random state.

    Args:
        place: where the weights are.
        config: already prepared for one label.
        pooling: how rows become embeddings.
        dtype: of the loaded weights.
        key: what the user set, for messages.

    Raises:
        UserError: the files are missing, damaged or of another model.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    loader = AutoModelForSequenceClassification if _can_classify(config) else AutoModel
    try:
        with quiet_transformers():
            model, info = loader.from_pretrained(
                place.source,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a head with another number of labels is dropped
                output_loading_info=True,
            )
    except Exception as error:  # OSError, SafetensorError, RuntimeError, ValueError, ImportError ... by what is wrong
        raise _unreadable(place, key, error) from error
    absent = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    _check_complete(model, absent, {entry[0] for entry in info["mismatched_keys"]}, place, key)
    return _take_apart(model, pooling, absent)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No loading bars and no reports of missing keys: what matters of them is said in one line of our own."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _can_classify(config: PreTrainedConfig) -> bool:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def _take_apart(model: PreTrainedModel, pooling: Pooling, absent: set[str] | None = None) -> tuple[Backbone, HeadShape]:
    """Splits a model into backbone and head; `absent` are the keys that its files lacked, None for all of them."""
    config = model.config
    if pooling not in get_args(Pooling):
        raise UserError(f"model.pooling {pooling!r} is unknown: choose one of {', '.join(get_args(Pooling))}")
    if config.is_encoder_decoder:
        raise UserError(f"model.backbone: {config.model_type} is an encoder-decoder; give an encoder or a decoder")
    if not _can_classify(config):
        return _without_classifier(model, pooling)
    path, head = _classifier(model)
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
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(model.config)
    if pooling == "classification":
        raise UserError(f"model.pooling: {model.config.model_type} has no classification path; set it to last or mean")
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    chosen: Pooling = ("last" if causal else "mean") if pooling == "auto" else pooling
    return Backbone(_without_pooler(model), chosen), HeadShape(_state_size(model), bias=False)


def _classifier(model: PreTrainedModel) -> tuple[str, nn.Linear]:
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


def _state_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)


def _check_complete(
    model: PreTrainedModel, absent: set[str], mismatched: set[str], place: ModelPlace, key: str
) -> None:
    """Refuses files that do not fit the config, and says so where a part of the backbone starts at random."""
    names = [name for name, _ in model.named_parameters()]
    inside = [name for name in names if name.startswith(f"{model.base_model_prefix}.")] or names
    lacking = sorted(name for name in inside if name in absent and ".pooler." not in name)
    wrong = sorted(set(lacking) & mismatched)
    if wrong:
        raise UserError(
            f"{key}: the weights of {place.name!r} do not have the sizes that its config.json says ({wrong[0]})"
        )
    if lacking and len(lacking) == len([name for name in inside if ".pooler." not in name]):
        raise UserError(f"{key}: the files of {place.name!r} hold none of the weights of a {type(model).__name__}")
    if lacking:
        warnings.warn(
            f"{len(lacking)} of {len(inside)} backbone weights are not in {place.name!r} and start at random, "
            f"{lacking[0]} among them",
            stacklevel=2,
        )


def _unreadable(place: ModelPlace, key: str, error: Exception) -> UserError:
    if place.kind == "hub":
        return not_on_hub(place.name, key, one_line(error))
    return UserError(f"{key}: the model in {place.name!r} could not be read: {one_line(error)}")


def _offset(table: nn.Embedding) -> int:
    offset: Any = getattr(table, "offset", 0)
    return int(offset)


def _widen(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
