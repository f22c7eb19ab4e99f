"""Several linear heads on one embedding."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aplot_lightning.model.heads.head import Head, check_count, linear_layer


class Ensemble(Head):
    """K linear heads, each from a seed of its own.

    Formula:
        r_k = w_k · h (+ b_k);  r = mean_k r_k

    Gives: rewards (R,), member_rewards (R, K).

    Args:
        members: K, at least 2.

    When to use it: to see by the members' disagreement where the reward is not to be trusted. A loss of `rewards` alone
    gives every member the same gradient, so that they differ by their start for ever; an objective that reads
    `member_rewards` trains each of them (conf/objective/ensemble.yaml).

    Source: Coste et al. (2310.02743).

    Deviations: their members are whole models; here they share the backbone, which is much cheaper and says less.
    """

    kind: ClassVar[str] = "ensemble"
    options: ClassVar[tuple[str, ...]] = ("members",)
    tensor_names: ClassVar[frozenset[str]] = frozenset({"rewards", "member_rewards"})

    def __init__(self, members: int = 3) -> None:
        super().__init__()
        self.members = check_count("members", members, 2)

    def make_layers(self) -> None:
        self.rewards = linear_layer(self.in_features, self.members, self.has_bias)

    @torch.no_grad()
    def reset(self, deviation: float, generator: torch.Generator | None = None) -> None:
        """Fresh weights; a member's depend on the seed and its place alone, not on how many there are."""
        base = int(torch.randint(2**62, (), generator=generator))
        for member in range(self.members):
            own = torch.Generator().manual_seed(base + member)
            self.rewards.weight[member].normal_(0.0, deviation, generator=own)
        if self.rewards.bias is not None:
            self.rewards.bias.zero_()

    def read(self, embeddings: Tensor) -> dict[str, Tensor]:
        members = self.rewards(embeddings)
        return {"rewards": members.mean(-1), "member_rewards": members}
