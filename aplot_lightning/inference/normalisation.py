"""The mean and the scale of a model's rewards, kept in its exported folder.

Rewards of a Bradley-Terry model have no origin and a scale of their own; normalised ones have mean 0 and standard
deviation 1 on the data they were measured on, which is what a policy's optimizer or an ensemble wants.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from aplot_lightning.errors import UserError
from aplot_lightning.model.locate import locate_model

KEY = "reward_normalisation"  # in an exported config.json


@dataclass(frozen=True)
class Normalisation:
    """What is taken from a reward, and what it is divided by.

    Attributes:
        mean: of the rewards.
        scale: their standard deviation (divided by n), above 0.
        rewards: n, how many.
        data: what they were measured on.
    """

    mean: float
    scale: float
    rewards: int
    data: str

    def __call__(self, reward: float) -> float:
        return (reward - self.mean) / self.scale


class Running:
    """Mean and scale of numbers that come one after another, in constant memory (Welford 1962)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def update(self, values: Iterable[float]) -> None:
        for value in values:
            self.count += 1
            away = value - self.mean
            self.mean += away / self.count
            self._squares += away * (value - self.mean)

    @property
    def scale(self) -> float:
        """Standard deviation, divided by n; 0 without any."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0


def normalisation_of(name: str, key: str) -> Normalisation:
    """What a model's folder or repository says. Raises UserError where it says nothing, or nothing that makes sense."""
    content = _config(name, key)
    if KEY not in content:
        raise UserError(
            f"--normalise: {name!r} ({key}) has no mean and scale of its rewards: "
            "export it with --normalise FILE, and score with the exported folder"
        )
    try:
        found = Normalisation(**content[KEY])
        sound = math.isfinite(found.mean) and 0 < found.scale < math.inf
    except TypeError:
        sound = False
    if not sound:
        raise UserError(f"--normalise: {KEY} in the config.json of {name!r} is damaged: export the model again")
    return found


def _config(name: str, key: str) -> dict[str, Any]:
    place = locate_model(name, key)
    if place.kind == "checkpoint":
        return {}
    from transformers import PreTrainedConfig

    # a folder of this disk, or a file of the hub's that came with the model
    content, _ = PreTrainedConfig.get_config_dict(place.source)
    return dict(content)


def with_normalisation(config: str, normalisation: Normalisation | None) -> str:
    """The text of a config.json with this entry, or with none: one that a former model had is not this one's."""
    content = {name: value for name, value in json.loads(config).items() if name != KEY}
    if normalisation is not None:
        content[KEY] = asdict(normalisation)
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def card_section(normalisation: Normalisation) -> str:
    """What the model card says of it, as Markdown."""
    mean, scale = f"{normalisation.mean:.6g}", f"{normalisation.scale:.6g}"
    return (
        "\n## Normalised rewards\n\n"
        f"On {normalisation.rewards:,} responses of {normalisation.data} the rewards have mean {mean} and standard "
        f"deviation {scale}. `aplot score --normalise true` gives (reward - {mean}) / {scale}; other programs give the "
        f"rewards as they are. Both numbers are `{KEY}` in config.json.\n"
    )
