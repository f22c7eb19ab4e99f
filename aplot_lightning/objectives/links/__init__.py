"""Links: the pairwise loss of the gap minus the margin."""

from __future__ import annotations

from aplot_lightning.objectives.links.beta import BetaLink
from aplot_lightning.objectives.links.fidelity import Fidelity
from aplot_lightning.objectives.links.plain import Focal, Hinge, Logistic
from aplot_lightning.objectives.links.probit import Probit

__all__ = ["BetaLink", "Fidelity", "Focal", "Hinge", "Logistic", "Probit"]
