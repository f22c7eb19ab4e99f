"""From embeddings to rewards. A head stays in float32 whatever the precision of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class LinearHead(nn.Linear):
    """reward = weight · embedding (+ bias), computed in float32.

    Decoders' sequence-classification models have no bias (their ``score``), encoders' have one: a head that came out
    of such a model goes back into it unchanged.

    Args:
        in_features: size of the embedding.
        bias: whether there is a constant term.
    """

    def __init__(self, in_features: int, bias: bool) -> None:
        super().__init__(in_features, 1, bias=bias, dtype=torch.float32)

    @torch.no_grad()
    def reset(self, deviation: float, generator: torch.Generator | None = None) -> None:
        """Fresh weights: normal with this standard deviation, from `generator` or torch's global one; bias 0."""
        self.weight.normal_(0.0, deviation, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, embeddings: Tensor) -> Tensor:
        """(R, d) of any float dtype -> (R,) in the dtype of the head, float32 unless it was widened."""
        return super().forward(embeddings.to(self.weight.dtype)).squeeze(-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LinearHead:
        # `model.to(torch.bfloat16)`, and Lightning's bf16-true with it, would narrow the head: only its move is taken
        def keep_width(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrower = result.is_floating_point() and result.element_size() < tensor.element_size()
            return tensor.to(result.device) if narrower and tensor.dtype == torch.float32 else result

        super()._apply(keep_width, recurse)
        return self

    def describe(self) -> dict[str, Any]:
        """Primitives from which `build_head` builds this head's shape again."""
        return {"kind": "linear", "in_features": self.in_features, "bias": self.bias is not None}


def make_head(
    in_features: int, bias: bool, weights: Mapping[str, Tensor] | None, *, deviation: float, seed: int | None
) -> LinearHead:
    """A head with the weights that a model came with, or fresh ones.

    Args:
        in_features: size of the embedding.
        bias: whether there is a constant term.
        weights: its state; None for fresh weights.
        deviation: of fresh weights.
        seed: draws fresh weights from a generator of their own; None from torch's global one.
    """
    head = LinearHead(in_features, bias)
    if weights is not None:
        head.load_state_dict(weights)
    else:
        head.reset(deviation, None if seed is None else torch.Generator().manual_seed(seed))
    return head


def build_head(description: dict[str, Any]) -> LinearHead:
    """The head that `describe` described, with weights still to be loaded. Raises ValueError for an unknown kind."""
    if description["kind"] != "linear":
        raise ValueError(f"unknown kind of head {description['kind']!r}")
    return LinearHead(int(description["in_features"]), bool(description["bias"]))
