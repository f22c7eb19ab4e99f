"""The qualities of a response, and the true reward: a known linear function of them."""

from __future__ import annotations

from dataclasses import dataclass

from aplot_lightning.data.world.language import COURTESIES, Reply, Scene


@dataclass(frozen=True, slots=True)
class Qualities:
    """What the true reward looks at. The spurious cue is not among them."""

    answers: bool
    """It answers the question that was asked."""
    facts: bool
    """The place that it states is the prompt's, and the name, where it states one, is that of who has more."""
    arithmetic: bool
    """Its number is the right sum or difference for the question that it answers."""
    politeness: int
    """-1 rude, 0 neutral, 1 polite."""
    fillers: int
    """Sentences that say nothing, 0 to 2."""


ANSWERS_WEIGHT = 1.5
FACTS_WEIGHT = 1.15
ARITHMETIC_WEIGHT = 0.75
POLITENESS_WEIGHT = 0.5
FILLERS_WEIGHT = -0.22


def true_reward(qualities: Qualities) -> float:
    """The known true reward: 1.5 answers + 1.15 facts + 0.75 arithmetic + 0.5 politeness - 0.22 fillers.

    No two different qualities have the same reward, so two replies with different qualities are never a tie.
    """
    return (
        ANSWERS_WEIGHT * qualities.answers
        + FACTS_WEIGHT * qualities.facts
        + ARITHMETIC_WEIGHT * qualities.arithmetic
        + POLITENESS_WEIGHT * qualities.politeness
        + FILLERS_WEIGHT * qualities.fillers
    )


def qualities_of(scene: Scene, reply: Reply) -> Qualities:
    """The qualities of a reply to a scene's prompt."""
    right_person = reply.question != "difference" or reply.person == scene.person()
    politeness = next(level for level, phrases in COURTESIES.items() if reply.courtesy in phrases)
    return Qualities(
        answers=reply.question == scene.question,
        facts=right_person and reply.place == scene.place,
        arithmetic=reply.number == scene.number(reply.question),
        politeness=politeness,
        fillers=len(reply.fillers),
    )
