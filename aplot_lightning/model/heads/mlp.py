"""A head with hidden layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from aplot_lightning.model.heads.head import Head, check_count, linear_layer

Activation = Literal["relu", "gelu", "silu", "tanh"]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class MLP(Head):
    """Hidden layers with an activation between the embedding and the reward.

    Formula:
        h_0 = h;  h_k = a(W_k h_{k-1} + b_k);  r = w · h_K (+ b)

    Gives: rewards (R,).

    Args:
        hidden_size: size of each hidden layer; null for that of the embedding.
        layers: K, the number of hidden layers, at least 1.
        activation: a, one of relu, gelu, silu, tanh.

    When to use it: on a frozen backbone, or where a linear reward of the embedding is too little.

    Source: the `mlp` reward head of GRM's release (2406.10216).

    Deviations: the number of layers and the activation are free; hidden weights are drawn uniformly from
    ±1/sqrt(their inputs), PyTorch's own choice, so that signals keep their size.
    """

    kind: ClassVar[str] = "mlp"
    options: ClassVar[tuple[str, ...]] = ("hidden_size", "layers", "activation")

    def __init__(self, hidden_size: int | None = None, layers: int = 1, activation: Activation = "relu") -> None:
        super().__init__()
        self.hidden_size = None if hidden_size is None else check_count("hidden_size", hidden_size, 1)
        self.layers = check_count("layers", layers, 1)
        if activation not in FUNCTIONS:
            raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}, got {activation!r}")
        self.activation = activation

    def make_layers(self) -> None:
        size = self.in_features if self.hidden_size is None else self.hidden_size
        inputs = [self.in_features] + [size] * (self.layers - 1)
        self.hidden = nn.ModuleList([linear_layer(inner, size, True) for inner in inputs])
        self.reward = linear_layer(size, 1, self.has_bias)

    @torch.no_grad()
    def reset(self, deviation: float, generator: torch.Generator | None = None) -> None:
        super().reset(deviation, generator)
        for layer in self.hidden.children():
            assert isinstance(layer, nn.Linear)
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)

    def read(self, embeddings: Tensor) -> dict[str, Tensor]:
        states = embeddings
        for layer in self.hidden:
            states = FUNCTIONS[self.activation](layer(states))
        return {"rewards": self.reward(states).squeeze(-1)}
