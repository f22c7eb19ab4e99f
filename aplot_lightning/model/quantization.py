"""Frozen weights in four bits (QLoRA, 2305.14314), through bitsandbytes: in place, to and from a state dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aplot_lightning.errors import UserError
from aplot_lightning.model.tokenizer import one_line

BLOCK = 64  # weights with one scale; where it does not divide the rows, bitsandbytes 0.50 goes wrong on CPUs
STATE = ".quant_state.bitsandbytes__"  # how bitsandbytes calls what it packs beside a weight


@dataclass(frozen=True)
class Quantization:
    """Four bits a weight for the linear layers that adapters stand beside, and for them only.

    Args:
        kind: the sixteen values: quantiles of a normal distribution (nf4), or floating point (fp4).
        double: keeps the scale of each block of 64 weights in eight bits too.
        compute_dtype: what weights become when they are multiplied: bfloat16 on GPUs that have it, else float16;
            float32 gives the rewards of the exported model to rounding.
    """

    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.kind not in ("nf4", "fp4"):
            raise UserError(f"model.lora.quantization.kind is {self.kind!r}: it must be nf4 or fp4")
        if self.compute_dtype not in ("bfloat16", "float16", "float32"):
            raise UserError(
                f"model.lora.quantization.compute_dtype is {self.compute_dtype!r}: it must be bfloat16, float16 or "
                "float32"
            )


def quantize(model: nn.Module, names: Iterable[str], options: Quantization) -> None:
    """Puts linear layers with four bits a weight in the place of plain ones; their weights get no gradients.

    Args:
        model: is changed in place; its weights are on the device that they are to be quantised on.
        names: paths of `nn.Linear` layers in it.
        options: which four bits.

    Raises:
        UserError: bitsandbytes is not installed, or a layer's rows are no whole blocks of weights.
    """
    bnb = _bitsandbytes("model.lora.quantization")
    for name in names:
        plain: Any = model.get_submodule(name)
        _check(name, plain)
        layer = bnb.nn.Linear4bit(
            plain.in_features,
            plain.out_features,
            plain.bias is not None,
            compute_dtype=getattr(torch, options.compute_dtype),
            compress_statistics=options.double,
            quant_type=options.kind,
            device="meta",
        )
        device = plain.weight.device
        layer.weight = bnb.nn.Params4bit(
            plain.weight.data, requires_grad=False, compress_statistics=options.double, quant_type=options.kind
        )
        layer.bias = plain.bias
        # what bitsandbytes makes of weights for inference on CPUs with bfloat16 has no backward pass to come back to
        layer.support_avx512bf16_for_cpu = False
        layer.to(device)  # which quantises
        layer.register_load_state_dict_pre_hook(_load)
        model.set_submodule(name, layer)


def _check(name: str, layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear) and layer.in_features % BLOCK == 0:
        return
    inputs = f"has {layer.in_features} inputs, no multiple of {BLOCK}" if isinstance(layer, nn.Linear) else ""
    raise UserError(
        f"model.lora.quantization: {name} {inputs or 'keeps its weights transposed'}, which four bits do not suit; "
        "leave quantization out, or the layer out of model.lora.targets"
    )


def _load(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Takes a layer's scales out of a state dict that is being loaded: PyTorch knows of the weight alone."""
    scales = {name: state.pop(name) for name in [*state] if name.startswith(f"{prefix}weight.")}
    if scales:
        weight = layer.weight
        weight.quant_state = layer.quant_state = _quant_state(scales, weight.device)


def is_quantized(state: Mapping[str, Any], weight: str) -> bool:
    """Whether a state dict holds the weight of this name in four bits."""
    return any(name.startswith(weight + STATE) for name in state)


def dequantized(state: Mapping[str, Tensor], weight: str) -> Tensor:
    """The weight of this name, (out, in) float32, from four bits and their scales.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    bnb = _bitsandbytes("a checkpoint with weights in four bits")
    scales = {name: tensor for name, tensor in state.items() if name.startswith(f"{weight}.")}
    quant_state = _quant_state(scales, torch.device("cpu"))
    whole: Tensor = bnb.functional.dequantize_4bit(state[weight].cpu(), quant_state)
    return whole.float()


def scale_names(state: Mapping[str, Any]) -> set[str]:
    """The entries of a state dict that belong to weights in four bits."""
    weights = {name.partition(STATE)[0] for name in state if STATE in name}
    return {name for name in state if any(name.startswith(f"{weight}.") for weight in _parents(name) & weights)}


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def _quant_state(scales: Mapping[str, Tensor], device: torch.device) -> Any:
    from bitsandbytes.functional import QuantState

    return QuantState.from_dict(dict(scales), device)


def _bitsandbytes(what: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f'{what} needs bitsandbytes ({one_line(error)}): pip install "aplot-lightning[qlora]"'
        ) from error
    return bitsandbytes
