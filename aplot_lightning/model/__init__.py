"""From a Batch to Scores: backbones, heads, reward models, and reading them from disk.

RewardModel is loaded when it is asked for: `locate` beside it must not wait for PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aplot_lightning.model.reward_model import RewardModel

__all__ = ["RewardModel"]


def __getattr__(name: str) -> Any:
    if name != "RewardModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aplot_lightning.model.reward_model import RewardModel

    return RewardModel
