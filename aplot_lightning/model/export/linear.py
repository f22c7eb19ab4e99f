"""Heads as the one linear layer that a plain sequence-classification model has, where their rewards are linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aplot_lightning.errors import UserError
from aplot_lightning.model.heads import (
    Bottleneck,
    Ensemble,
    Head,
    Linear,
    QualityAndLength,
    WithConfidence,
    WithVariance,
)


class LinearReward(NamedTuple):
    """r = w · h + b in float64: weight w (1, d), and constant b, which is 0.0 where there is none."""

    weight: Tensor
    constant: float


def linear_reward(head: Head, key: str) -> LinearReward:
    """The reward that `head` gives in evaluation mode, as one linear function of the embedding.

    A plain head and the reward beside a variance or confidence are linear as they are; of ODIN's two the one of quality
    scores; an ensemble's mean is the mean of its weights; InfoRM's code without noise is linear, and so is its reward.

    Args:
        head: of a trained model.
        key: what the user set, for messages.

    Raises:
        UserError: rewards are not linear (an MLP); no Transformers class takes such a head without code of its own.
    """
    read = READERS.get(type(head))
    if read is None:
        raise UserError(
            f"{key}: the model's {head.kind} head is not linear, and no sequence-classification model of Transformers "
            "holds it without code of its own; score with this package, or train a linear head on it: fit "
            "--model.backbone MODEL --model.head aplot_lightning.model.heads.Linear"
        )
    with torch.no_grad():
        weight, bias = read(head)
        return LinearReward(weight, 0.0 if bias is None else bias.detach().item())


def _plain(head: Linear) -> tuple[Tensor, Tensor | None]:
    return head.weight.double(), head.bias


def _beside(head: WithVariance | WithConfidence) -> tuple[Tensor, Tensor | None]:
    return head.reward.weight.double(), head.reward.bias


def _quality(head: QualityAndLength) -> tuple[Tensor, Tensor | None]:
    layer = head.rewards
    return layer.weight[:1].double(), None if layer.bias is None else layer.bias[0]


def _mean(head: Ensemble) -> tuple[Tensor, Tensor | None]:
    layer = head.rewards
    return layer.weight.double().mean(0, keepdim=True), None if layer.bias is None else layer.bias.double().mean()


def _through_the_code(head: Bottleneck) -> tuple[Tensor, Tensor | None]:
    reward, code = head.reward, head.code
    weight = reward.weight.double()
    constant = weight @ code.bias[: head.dimension].double()
    if reward.bias is not None:
        constant = constant + reward.bias.double()
    return weight @ code.weight[: head.dimension].double(), constant


READERS: dict[type[nn.Module], Callable[..., tuple[Tensor, Tensor | None]]] = {
    Linear: _plain,
    WithVariance: _beside,
    WithConfidence: _beside,
    QualityAndLength: _quality,
    Ensemble: _mean,
    Bottleneck: _through_the_code,
}
