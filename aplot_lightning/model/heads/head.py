"""What every head is: hyperparameters first, layers when the size of the embedding is known, float32 always."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Head(nn.Module, ABC):
    """Base of all heads: from an embedding to a reward and whatever else an objective asks for.

    A head is made with its hyperparameters alone (so that YAML can name it) and gets its layers from `build`. Its
    weights stay in float32 whatever the precision of the backbone.

    Attributes:
        kind: its name in a checkpoint; never a class path, because a file must not say what code to run.
        options: the constructor's arguments, kept as attributes of the same names; primitives.
        tensor_names: what `forward` gives, in training as in evaluation.
        linear: rewards are one linear function of the embedding, and there is nothing else.
        in_features: size of the embedding, once built.
        has_bias: whether layers that give a reward have a constant term, once built.
    """

    kind: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    tensor_names: ClassVar[frozenset[str]] = frozenset({"rewards"})
    linear: ClassVar[bool] = False

    in_features: int
    has_bias: bool

    def build(self, in_features: int, bias: bool) -> None:
        """Makes the layers, with weights that are still to be loaded or drawn by `reset`.

        Args:
            in_features: size of the embedding.
            bias: whether layers that give a reward have a constant term (encoders' own heads do, decoders' do not).
        """
        self.in_features, self.has_bias = in_features, bias
        self.make_layers()

    @abstractmethod
    def make_layers(self) -> None:
        """Makes the layers for `in_features` and `has_bias`, in float32."""

    @abstractmethod
    def read(self, embeddings: Tensor) -> dict[str, Tensor]:
        """(R, d) in the dtype of the head -> the tensors of `tensor_names`, (R, ...) each."""

    def forward(self, embeddings: Tensor) -> dict[str, Tensor]:
        """(R, d) of any float dtype -> named tensors (R, ...), float32 unless the head was widened."""
        return self.read(embeddings.to(next(self.parameters()).dtype))

    @torch.no_grad()
    def reset(self, deviation: float, generator: torch.Generator | None = None) -> None:
        """Fresh weights: normal with this standard deviation, from `generator` or torch's global one; biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, deviation, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()

    def describe(self) -> dict[str, Any]:
        """Primitives from which `build_head` builds this head's shape again."""
        options = {name: getattr(self, name) for name in self.options}
        return {"kind": self.kind, "in_features": self.in_features, "bias": self.has_bias, **options}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Head:
        # `model.to(torch.bfloat16)`, and Lightning's bf16-true with it, would narrow the head: only its move is taken
        def keep_width(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrow = result.is_floating_point() and result.element_size() < 4
            return tensor.to(result.device, torch.float32) if narrow else result

        super()._apply(keep_width, recurse)
        return self


def linear_layer(in_features: int, out_features: int, bias: bool) -> nn.Linear:
    """A float32 layer, whatever torch's default dtype is at the moment."""
    return nn.Linear(in_features, out_features, bias=bias, dtype=torch.float32)


def check_count(name: str, value: int, least: int) -> int:
    """The value of a whole-number argument; raises ValueError where it is less than `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)
