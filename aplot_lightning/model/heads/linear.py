"""The plain head: one linear layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from aplot_lightning.model.heads.head import Head


class Linear(Head):
    """One linear layer, as the architecture's own sequence classification has it.

    Formula:
        r = w · h (+ b)

    Gives: rewards (R,).

    Args: none. The constant term b is there where the architecture's own head has one (encoders), so that a head that
        came out of a sequence-classification model goes back into it unchanged.

    When to use it: the default (`model.head: null`).

    Source: InstructGPT (2203.02155), section 3.5.

    Deviations: none.
    """

    kind: ClassVar[str] = "linear"
    linear: ClassVar[bool] = True

    weight: nn.Parameter
    bias: nn.Parameter | None

    def make_layers(self) -> None:
        self.weight = nn.Parameter(torch.zeros(1, self.in_features, dtype=torch.float32))
        self.register_parameter("bias", nn.Parameter(torch.zeros(1, dtype=torch.float32)) if self.has_bias else None)

    @torch.no_grad()
    def reset(self, deviation: float, generator: torch.Generator | None = None) -> None:
        self.weight.normal_(0.0, deviation, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    def read(self, embeddings: Tensor) -> dict[str, Tensor]:
        return {"rewards": nn.functional.linear(embeddings, self.weight, self.bias).squeeze(-1)}
