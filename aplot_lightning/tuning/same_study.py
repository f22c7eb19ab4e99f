"""A study of one name is one study: its trials' values are comparable, whenever the command is run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.locks import locked
from aplot_lightning.tuning.study import StudyConfig

if TYPE_CHECKING:
    import optuna

ATTRIBUTE = "identity"  # of the study in its storage


def check_same_study(config: StudyConfig, study: optuna.Study, base: Mapping[str, Any]) -> None:
    """Leaves in a new study what its values follow from. Raises UserError where an old one's follow from other things.

    Args:
        config: the study; the number of trials, the sampler and the pruner may change.
        study: of this name, in the storage.
        base: the whole config that its trials start from.
    """
    # as the storage would keep it
    mine = json.loads(json.dumps({**config.identity(), "base": base}, default=str))
    with locked(config.location, "claim"):
        theirs = study.user_attrs.get(ATTRIBUTE)
        if theirs is None:
            study.set_user_attr(ATTRIBUTE, mine)
            return
    difference = _difference(theirs, mine)
    if difference:
        raise UserError(
            f"study: {config.study!r} is there already, and differs in {difference}; give this one another name, or "
            "another storage"
        )


def _difference(one: Any, other: Any, key: str = "") -> str | None:
    """The first key in which two configs differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*one, *other]):
            inner = f"{key}.{name}" if key else str(name)
            found = _difference(one[name], other[name], inner) if name in one and name in other else inner
            if found:
                return found
        return None
    return None if one == other else key
