"""What is settled before a backbone is built: precision, attention, dropout, and a config fit for one reward."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from aplot_lightning.errors import UserError
from aplot_lightning.model.locate import ModelPlace, not_on_hub
from aplot_lightning.model.tokenizer import one_line
from aplot_lightning.model.transformers_internals import cpu_has_matrices_of, set_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# names only: another string could make Transformers fetch a kernel, which is code, from the hub
ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of this name; raises UserError for another."""
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is unknown: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def emulation(name: str, device: torch.device) -> str | None:
    """What to say where a processor has no instructions for matrices of this dtype; else None.

    Measured on an AMD EPYC with AVX2 alone: a product of bfloat16 matrices takes about 40 times as long.

    Raises:
        UserError: there is no dtype of this name.
    """
    dtype = torch_dtype(name)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if cpu_has_matrices_of(dtype):
        return None
    return f"this processor emulates {name}, which is many times slower than float32"


def saved_dtype(config: PreTrainedConfig) -> str:
    """The name of the dtype in which a model was saved; float32 where its config does not say."""
    return str(config.dtype or torch.float32).removeprefix("torch.")


def prepare_config(config: PreTrainedConfig, *, attention: str | None, dropout: float | None) -> None:
    """Makes `config` one for a reward model, in place: one label, no cache, this attention and dropout.

    Args:
        config: of any architecture.
        attention: how attention is computed (Transformers' ``attn_implementation``); None for the model's default.
        dropout: the value of every dropout probability; None keeps them.

    Raises:
        UserError: an unknown attention, or a dropout outside [0, 1).
    """
    if attention is not None and attention not in ATTENTIONS:
        raise UserError(f"model.attention {attention!r} is unknown: choose one of {', '.join(ATTENTIONS)}")
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"model.dropout is {dropout}: it is a probability, at least 0 and less than 1")
    set_attention(config, attention)
    if config.num_labels != 1:
        config.num_labels = 1
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        if hasattr(part, "use_cache"):
            part.use_cache = False
        if dropout is not None:
            _set_dropout(part, dropout)


def _set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Sets hidden_dropout_prob, attention_dropout, resid_pdrop and their like; layers are never dropped."""
    for name, value in vars(config).items():
        probability = isinstance(value, (int, float)) and not isinstance(value, bool)
        if probability and ("dropout" in name or "pdrop" in name):
            setattr(config, name, dropout)
        elif probability and "layerdrop" in name:
            setattr(config, name, 0.0)


def config_to_dict(config: PreTrainedConfig) -> dict[str, Any]:
    """The whole config as primitives, without the names of other people's code or folders."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name not in ("auto_map", "_name_or_path")}


def config_from_dict(values: dict[str, Any]) -> PreTrainedConfig:
    """The config that `config_to_dict` wrote; raises ValueError for an architecture that Transformers lacks."""
    from transformers import AutoConfig

    rest = {name: value for name, value in values.items() if name not in ("model_type", "auto_map")}
    return AutoConfig.for_model(values["model_type"], **rest)


def read_config(place: ModelPlace, key: str) -> PreTrainedConfig:
    """The config of a folder or hub model; UserError where it is missing, damaged, or unknown to Transformers."""
    from transformers import AutoConfig

    if place.kind == "hub":
        _ask_hub(place, key)
    try:
        return AutoConfig.from_pretrained(place.source, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, KeyError, hub errors: by what is wrong with it
        if place.kind == "hub":
            raise not_on_hub(place.name, key, one_line(error)) from error
        raise UserError(f"{key}: the config.json of {place.name!r} could not be read: {one_line(error)}") from error


def _ask_hub(place: ModelPlace, key: str) -> None:
    """Raises UserError where the hub does not have a model that is not cached either: one request, without retries.

    Transformers would retry an unreachable hub for half a minute, with a warning each time.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(place.source, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(place.source, "config.json"), timeout=10)
    except errors.OfflineModeIsEnabled as error:
        raise not_on_hub(place.name, key, "HF_HUB_OFFLINE is set") from error
    except errors.GatedRepoError as error:
        raise not_on_hub(place.name, key, "its owner must grant access first") from error
    except errors.RepositoryNotFoundError as error:
        raise not_on_hub(place.name, key, "no such repository, or a private one") from error
    except errors.EntryNotFoundError as error:
        raise not_on_hub(place.name, key, "its repository has no config.json") from error
    except Exception as error:  # no network, a proxy, a time-out: of the client in use
        raise not_on_hub(place.name, key, f"it cannot be reached: {one_line(error, limit=80)}") from error


def is_decoder(config: PreTrainedConfig) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides loading bars and reports of missing keys; what matters of them is reported in one line of our own."""
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
