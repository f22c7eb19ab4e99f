"""The private names of Transformers and of torch's CPU kernels that the models use, each with the reason.

No other file in this room uses any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def attention_of(config: PreTrainedConfig) -> str | None:
    """The name of the attention that a model with this config runs; None if nothing was chosen.

    Transformers sets it by public ways (`attn_implementation=`, `set_attn_implementation`) but has none to read it.
    Without it, no decoder could be checked for packed rows: all would take padded rows.
    """
    chosen: str | None = config._attn_implementation
    return chosen


def set_attention(config: PreTrainedConfig, attention: str | None) -> None:
    """Chooses the attention of a model that is yet to be built from this config, in place; None for the default.

    `attn_implementation=` of `from_pretrained` and `from_config` does the same for a model, but not for a config that
    is used by more than one of them. Without it, `model.attention` would have to travel to every place that builds one,
    and exported configs could keep this project's choice.
    """
    config._attn_implementation = attention


def cpu_has_matrices_of(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for matrix products of this dtype; True for dtypes that all have.

    torch has no public name for it. Without it, a user gets no warning that bfloat16 or float16 is many times slower
    than float32 on this processor. Ask only where `torch.backends.mkldnn.is_available()`.
    """
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True
