"""A queue of recent rejected responses that a transport plan uses in addition to those of its micro-batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RejectedQueue(nn.Module):
    """Rewards and embeddings of the most recent rejected responses, newest first; saved in checkpoints.

    The first responses set the width of the buffers, which then keep their size, so that ranks can exchange them.

    Args:
        size: number of responses to keep, at least 1.
    """

    rewards: Tensor
    embeddings: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("rewards", torch.zeros(0))
        self.register_buffer("embeddings", torch.zeros(0, 0))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def contents(self) -> tuple[Tensor, Tensor]:
        """Rewards (q,) and embeddings (q, d) of the q <= size responses in the queue; waits for the device."""
        count = int(self.count)
        return self.rewards[:count], self.embeddings[:count]

    @torch.no_grad()
    def push(self, rewards: Tensor, embeddings: Tensor) -> None:
        """Adds rewards (n,) and embeddings (n, d), detached, and drops the oldest that no longer fit."""
        if len(self.rewards) != self.size:
            self.rewards = rewards.new_zeros(self.size)
            self.embeddings = embeddings.new_zeros(self.size, embeddings.shape[1])
        self.rewards = torch.cat([rewards.detach(), self.rewards])[: self.size].clone()
        self.embeddings = torch.cat([embeddings.detach(), self.embeddings])[: self.size].clone()
        self.count = (self.count + len(rewards)).clamp(max=self.size)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Loads buffers of any saved width and length; a queue of another size keeps its newest responses."""
        for name in ("rewards", "embeddings"):
            saved = state_dict.get(prefix + name)
            if saved is None:
                continue
            if len(saved) not in (0, self.size):
                kept = saved[: self.size]
                saved = torch.cat([kept, kept.new_zeros(self.size - len(kept), *kept.shape[1:])])
                state_dict[prefix + name] = saved
            setattr(self, name, torch.zeros_like(saved, device=self.count.device))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.count.clamp_(max=self.size)
