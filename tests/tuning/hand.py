"""A study in a real SQLite file whose trials are written by hand: values, failures and all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from aplot_lightning.tuning.storage import open_study
from aplot_lightning.tuning.study import StudyConfig

ROOT = Path(__file__).parents[2]
OBJECTIVES = ROOT / "conf" / "objective"
FACTOR = "model.objective.margin.factor"
SPACE = {
    "share": {
        "float": [0.0, 1.0],
        "sets": {
            "model.objective.margin.similarity_weight": "share",
            "model.objective.margin.reward_weight": "1 - share",
        },
    },
    FACTOR: {"categorical": [0.5, 1.0]},
    "model.learning_rate": {"float": [1e-4, 1e-2], "log": True},
}
DISTRIBUTIONS = {
    "share": FloatDistribution(0, 1),
    FACTOR: CategoricalDistribution([0.5, 1.0]),
    "model.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
}


def study_config(folder: Path, base: str = "base.yaml", **options: Any) -> StudyConfig:
    """A study over APLOT's cost weights."""
    given = {"study": "hand", "configs": [base, str(OBJECTIVES / "aplot.yaml")], "space": SPACE}
    return StudyConfig(**{**given, "directory": str(folder), **options})


def point(share: float = 0.25, factor: float = 0.5, learning_rate: float = 3e-3) -> dict[str, Any]:
    return {"share": share, FACTOR: factor, "model.learning_rate": learning_rate}


def complete(value: float, **options: Any) -> FrozenTrial:
    """A trial with a value, at a point of the space."""
    slot = options.pop("slot", "sample")
    return create_trial(value=value, params=point(**options), distributions=DISTRIBUTIONS, user_attrs={"slot": slot})


def pruned(*reports: float) -> FrozenTrial:
    """A trial that was stopped after these validations."""
    return create_trial(
        state=TrialState.PRUNED,
        params=point(share=0.75),
        distributions=DISTRIBUTIONS,
        intermediate_values=dict(enumerate(reports, start=1)),
    )


def failed(reason: str | None) -> FrozenTrial:
    """A trial that failed of itself, or (None) with the process that ran it."""
    attributes = {"stopped": True} if reason is None else {"failure": reason}
    return create_trial(
        state=TrialState.FAIL, params=point(share=1.0), distributions=DISTRIBUTIONS, user_attrs=attributes
    )


def hand_study(config: StudyConfig, trials: Sequence[FrozenTrial]) -> optuna.Study:
    study, _ = open_study(config.location, config.study, direction=config.direction)
    study.add_trials(trials)
    return study


def many(number: int) -> list[FrozenTrial]:
    """Trials at different points, each better than the one before."""
    return [
        complete(
            0.5 + place / 100, share=place / number, factor=(0.5, 1.0)[place % 2], learning_rate=1e-3 + place / 1e4
        )
        for place in range(number)
    ]
