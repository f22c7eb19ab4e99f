"""LoRA (2106.09685): the backbone is frozen, and small matrices beside its linear layers are trained, through PEFT.

A checkpoint holds the frozen weights and the adapters, so that it needs no other file. Whoever reads it as a model gets
the plain backbone with the adapters merged into its weights, for which PEFT is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aplot_lightning.errors import UserError
from aplot_lightning.model.backbone.blocks import blocks_of
from aplot_lightning.model.quantization import Quantization, dequantized, is_quantized, quantize, scale_names
from aplot_lightning.model.tokenizer import one_line

# how PEFT names things in an adapted layer
BASE = ".base_layer."
DOWN, UP, MAGNITUDE = (f".lora_{part}.default.weight" for part in ("A", "B", "magnitude_vector"))


@dataclass(frozen=True)
class LoRA:
    """Adapters on linear layers: x W becomes x (W + scale B A) with B = 0 at the start.

    Args:
        rank: of B A.
        alpha: scale is alpha / rank.
        dropout: of what the adapters read, in training.
        targets: names of linear layers in the backbone's blocks, or ends of names, such as q_proj or mlp.up_proj; null
            for all of them.
        rslora: scale is alpha / sqrt(rank) (2312.03732), so that high ranks learn as fast as low ones.
        dora: learns the length of each row of the weights beside the adapters (2402.09353).
        quantization: keeps the frozen weights beside the adapters in four bits (QLoRA), for models that do not fit
            otherwise; null for their own precision.

    Raises:
        UserError: a number out of its range, or an empty list of targets.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None
    rslora: bool = False
    dora: bool = False
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"model.lora.rank is {self.rank}: it must be at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"model.lora.alpha is {self.alpha}: it must be a finite number above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.lora.dropout is {self.dropout}: it is a probability, at least 0 and less than 1")
        if self.targets is not None and not self.targets:
            raise UserError("model.lora.targets is empty: name linear layers, or set it to null for all of them")

    @property
    def scale(self) -> float:
        """What B A is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def add_adapters(model: Any, lora: LoRA) -> dict[str, Any]:
    """Puts adapters into a Transformers model in place and freezes the rest of its base model.

    What an architecture's classification path has outside its base model (RoBERTa's `classifier.dense`) is part of the
    head and is trained whole. Adapters are float32, or float64 in a float64 model.

    Args:
        model: of a backbone.
        lora: what is to be added; A is drawn from torch's global random state.

    Returns:
        The adapters' shape, of which `merged` is made, as primitives.

    Raises:
        UserError: PEFT is not installed, or there is no linear layer of the names that were given.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            f'model.lora needs PEFT ({one_line(error)}): pip install "aplot-lightning[lora]", or leave model.lora out'
        ) from error
    layers = _choose(_linear_layers(model), lora.targets)
    transposed = {_is_transposed(layer) for layer in layers.values()}
    if len(transposed) > 1:
        raise UserError("model.lora.targets: some of these layers keep their weights transposed; name one kind of them")
    if lora.quantization is not None:
        quantize(model, layers, lora.quantization)
        model.is_loaded_in_4bit = True  # PEFT asks for this
    base = {id(parameter) for parameter in model.base_model.parameters()}
    path = [parameter for parameter in model.parameters() if id(parameter) not in base]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it
        lora_dropout=lora.dropout,
        target_modules=list(layers),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        fan_in_fan_out=transposed == {True},
    )
    inject_adapter_in_model(config, model)
    widen_adapters(model)
    for parameter in path:
        parameter.requires_grad_(True)
    return {**asdict(lora), "transposed": transposed == {True}}


def widen_adapters(model: nn.Module) -> None:
    """Makes adapters float32 again, in place, where a conversion of the whole model has narrowed them."""
    for name, parameter in model.named_parameters():
        if name.endswith((DOWN, UP, MAGNITUDE)) and parameter.element_size() < 4:
            parameter.data = parameter.data.float()


def merged(
    description: Mapping[str, Any], state: Mapping[str, Tensor], name: str
) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """The description and the weights of a checkpoint as those of a plain model; unchanged where it has no adapters.

    Args:
        description: from `RewardModel.describe`.
        state: the reward model's weights.
        name: what the checkpoint is called in messages.

    Returns:
        The description without adapters, and the weights: changed ones in float32, or float64 from a float64 model.

    Raises:
        UserError: description and weights do not fit.
    """
    if description.get("lora") is None:
        return description, state
    try:
        lora, transposed = read_shape(description["lora"])
        plain = _merge(state, lora, transposed)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, UserError) as error:
        raise UserError(f"{name}: the checkpoint's adapters are damaged: {one_line(error)}") from error
    return {key: value for key, value in description.items() if key != "lora"}, plain


def read_shape(shape: Mapping[str, Any]) -> tuple[LoRA, bool]:
    """What `add_adapters` returned, and whether the adapted weights are kept transposed. Raises TypeError, KeyError."""
    options = dict(shape)
    transposed = bool(options.pop("transposed"))
    quantization = options.pop("quantization", None)
    return LoRA(**options, quantization=quantization and Quantization(**quantization)), transposed


def check_shape(own: Mapping[str, Any] | None, saved: Mapping[str, Any] | None) -> None:
    """Raises UserError where a run goes on from a checkpoint whose adapters mean something else; dropout may differ."""
    if _without_dropout(own) != _without_dropout(saved):
        raise UserError(
            f"model.lora: the checkpoint has {_say(saved)}, the config {_say(own)}: leave it as it was, or start a new "
            "run from the merged weights by --init_from"
        )


def _without_dropout(shape: Mapping[str, Any] | None) -> Any:
    return None if shape is None else {name: value for name, value in shape.items() if name != "dropout"}


def _say(shape: Mapping[str, Any] | None) -> str:
    if shape is None:
        return "no adapters"
    return ", ".join(f"{name} {value}" for name, value in shape.items() if name not in ("dropout", "transposed"))


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of the model's blocks by their paths."""
    from transformers.pytorch_utils import Conv1D

    blocks = {id(module) for block in blocks_of(model) for module in block.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in blocks and isinstance(module, (nn.Linear, Conv1D))
    }


def _is_transposed(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Linear)  # GPT-2's layers keep (in, out)


def _choose(layers: Mapping[str, nn.Module], targets: list[str] | None) -> dict[str, nn.Module]:
    if not layers:
        raise UserError("model.lora: the backbone has no blocks with linear layers; leave it out")
    chosen = []
    for target in list(layers) if targets is None else targets:
        named = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not named:
            kinds = sorted({name.rpartition(".")[2] for name in layers})
            raise UserError(
                f"model.lora.targets: no linear layer of the backbone's blocks is called {target!r}; "
                f"choose from {', '.join(kinds)}"
            )
        chosen += named
    return {name: layers[name] for name in layers if name in set(chosen)}


def _merge(state: Mapping[str, Tensor], lora: LoRA, transposed: bool) -> dict[str, Tensor]:
    plain = {}
    scales = scale_names(state)
    for name, tensor in state.items():
        if name in scales:
            continue
        layer, adapted, kind = name.rpartition(BASE)
        if adapted:
            whole = kind == "weight"
            plain[f"{layer}.{kind}"] = _merged_weight(state, layer, lora, transposed) if whole else tensor
        elif not name.endswith((DOWN, UP, MAGNITUDE)):
            plain[name] = tensor
    return plain


def _merged_weight(state: Mapping[str, Tensor], layer: str, lora: LoRA, transposed: bool) -> Tensor:
    """W + scale B A of one layer, its rows made as long as DoRA has learned."""
    name = f"{layer}{BASE}weight"
    base = dequantized(state, name) if is_quantized(state, name) else state[name]
    wide = torch.promote_types(base.dtype, torch.float32)
    down, up = state[layer + DOWN].to(wide), state[layer + UP].to(wide)
    weight = (base.T if transposed else base).to(wide) + lora.scale * (up @ down)
    if lora.dora:
        weight *= (state[layer + MAGNITUDE].to(wide) / weight.norm(dim=1))[:, None]
    return weight.T.contiguous() if transposed else weight
