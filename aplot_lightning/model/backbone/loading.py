"""Building a backbone from its config, or loading it from a folder or the hub."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from aplot_lightning.errors import UserError
from aplot_lightning.model.backbone.backbone import Backbone, Pooling
from aplot_lightning.model.backbone.splitting import HeadShape, can_classify, split_causal, split_classifier
from aplot_lightning.model.configuration import is_decoder, quiet_transformers
from aplot_lightning.model.locate import ModelPlace, not_on_hub
from aplot_lightning.model.tokenizer import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def build_backbone(
    config: PreTrainedConfig, pooling: Pooling, dtype: torch.dtype, *, keep_lm_head: bool = False, empty: bool = False
) -> tuple[Backbone, HeadShape]:
    """A backbone of this config with fresh weights from torch's global random state.

    Args:
        config: already prepared for one label.
        pooling: how rows become embeddings.
        dtype: of the weights.
        keep_lm_head: builds the language-model head too.
        empty: leaves the weights uninitialised, for a caller that loads all of them at once.

    Raises:
        UserError: the config cannot be built, or not with this pooling or attention.
    """
    from transformers.initialization import no_init_weights

    loader = _loader(config, pooling, keep_lm_head)
    config.dtype = dtype  # Transformers 5.0 builds the model inside a classifier in the config's dtype
    try:
        with quiet_transformers(), no_init_weights() if empty else nullcontext():
            model = loader.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # ValueError or ImportError for attention; anything for sizes that do not fit
        raise UserError(f"model.backbone: {config.model_type} could not be built: {one_line(error)}") from error
    if keep_lm_head:
        model.tie_weights()  # without initialisation Transformers leaves it out
        return split_causal(model, pooling)
    return split_classifier(model, pooling)


def load_backbone(
    place: ModelPlace,
    config: PreTrainedConfig,
    pooling: Pooling,
    dtype: torch.dtype,
    key: str,
    *,
    keep_lm_head: bool = False,
) -> tuple[Backbone, HeadShape]:
    """A backbone with the weights of a folder or hub model, read from safetensors only.

    Weights that the architecture's classification path needs and the files lack come from torch's global random state.

    Args:
        place: where the weights are.
        config: already prepared for one label.
        pooling: how rows become embeddings.
        dtype: of the loaded weights.
        key: what the user set, for messages.
        keep_lm_head: loads the language-model head too.

    Raises:
        UserError: the files are missing, damaged or of another model, or lack the language-model head.
    """
    loader = _loader(config, pooling, keep_lm_head)
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
    if keep_lm_head:
        _check_lm_head(model, absent, set(info["unexpected_keys"]), place)
        return split_causal(model, pooling)
    return split_classifier(model, pooling, absent)


def _loader(config: PreTrainedConfig, pooling: Pooling, keep_lm_head: bool) -> Any:
    """The family of classes that the model is built or loaded as."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    if keep_lm_head:
        if not is_decoder(config):
            raise UserError(
                f"model.keep_lm_head: {config.model_type} is no decoder with a language-model head; leave it false"
            )
        if pooling not in ("auto", "last", "mean"):
            raise UserError("model.keep_lm_head needs model.pooling auto, last or mean")
        return AutoModelForCausalLM
    return AutoModelForSequenceClassification if can_classify(config) else AutoModel


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


def _check_lm_head(model: PreTrainedModel, absent: set[str], unexpected: set[str], place: ModelPlace) -> None:
    if "score.weight" in unexpected:
        raise UserError(
            f"model.keep_lm_head: {place.name!r} is a sequence-classification model, which would lose its reward head; "
            "give a causal language model"
        )
    outside = [name for name in absent if not name.startswith(f"{model.base_model_prefix}.")]
    if outside:
        raise UserError(
            f"model.keep_lm_head: the files of {place.name!r} hold no language-model head ({min(outside)}); give a "
            "causal language model or leave it false"
        )


def _unreadable(place: ModelPlace, key: str, error: Exception) -> UserError:
    if place.kind == "hub":
        return not_on_hub(place.name, key, one_line(error))
    return UserError(f"{key}: the model in {place.name!r} could not be read: {one_line(error)}")
