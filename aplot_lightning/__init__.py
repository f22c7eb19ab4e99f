"""Reward models from preference pairs, with optimal-transport margins and the objectives around them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aplot_lightning.data.datamodule import PreferenceDataModule
    from aplot_lightning.model import RewardModel
    from aplot_lightning.training.module import RewardModelingModule

_HOMES = {
    "PreferenceDataModule": "aplot_lightning.data.datamodule",
    "RewardModel": "aplot_lightning.model",
    "RewardModelingModule": "aplot_lightning.training.module",
}

__all__ = ["PreferenceDataModule", "RewardModel", "RewardModelingModule"]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is asked for, so that light commands need not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
