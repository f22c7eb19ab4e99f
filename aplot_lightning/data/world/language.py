"""The world's language: scenes that become prompts, and replies that become responses.

A scene is two people, a count of one thing each, the place, and a question. A reply states an answer to one of the
three questions, perhaps with a wrong name, place or number, between phrases that say nothing about the scene. Text is
made from these values by templates alone, so it can be read back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

T = TypeVar("T")
Question = Literal["total", "difference", "where"]
Style = Literal["plain", "note"]
Fault = Literal["facts", "arithmetic"]
STYLES: tuple[Style, ...] = ("plain", "note")
QUESTIONS: tuple[Question, ...] = ("total", "difference", "where")
FAULTS: tuple[Fault, ...] = ("facts", "arithmetic")
COUNTS = range(2, 16)  # how many things a person may have; the two of a scene differ
LARGEST_SLIP = 4  # a wrong number is at most this far from the right one
ANSWERING_SHARE = 0.6  # of the replies answer the question that was asked
MOST_FILLERS = 2


@dataclass(frozen=True, slots=True)
class Topic:
    """What people do in one part of the world: a regular verb, things (plural) and places."""

    verb: str
    things: tuple[str, ...]
    places: tuple[str, ...]


TRAIN_PLACES = ("barn", "hall", "yard", "square")
NEW_PLACES = ("tower", "attic", "pier", "meadow")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _topic(verb: str, things: str, places: tuple[str, ...]) -> Topic:
    return Topic(verb, _words(things), places)


TRAIN_TOPICS = {
    "farm": _topic("grow", "apples pears plums onions beans melons", TRAIN_PLACES),
    "library": _topic("borrow", "books maps letters atlases journals novels", TRAIN_PLACES),
    "harbour": _topic("load", "barrels crates ropes nets sails anchors", TRAIN_PLACES),
    "kitchen": _topic("bake", "loaves pies cakes buns tarts rolls", TRAIN_PLACES),
    "workshop": _topic("repair", "clocks chairs lamps bikes radios boots", TRAIN_PLACES),
    "market": _topic("sell", "scarves hats rugs baskets candles mugs", TRAIN_PLACES),
}
NEW_TOPICS = {
    "museum": _topic("paint", "vases statues masks fans shields bowls", NEW_PLACES),
    "school": _topic("count", "pencils rulers crayons notebooks globes stamps", NEW_PLACES),
    "garden": _topic("plant", "roses tulips ferns lilies herbs daisies", NEW_PLACES),
}
TOPICS = TRAIN_TOPICS | NEW_TOPICS
NAMES = _words(
    "Ada Amir Ben Clara David Elena Farid Gita Hugo Ines Jonas Karim Leo Maja Nora Omar Paula Rosa Samir Tara Uma "
    "Viktor Yara Zoe"
)

PROMPTS: dict[Style, str] = {
    "plain": "{first} {verb}s {a} {things} in the {place}, {second} {b}.",
    "note": "From the {place}: {things}, {a} by {first}, {b} by {second}.",
}
ASKED: dict[Style, dict[Question, str]] = {
    "plain": {"total": "How many in all?", "difference": "Who {verb}s more?", "where": "Where are they?"},
    "note": {"total": "Give the sum.", "difference": "Give the gap.", "where": "Give the place."},
}
ANSWERS: dict[Style, dict[Question, str]] = {
    "plain": {
        "total": "In the {place} they {verb} {number}.",
        "difference": "{person} {verb}s {number} more in the {place}.",
        "where": "They are in the {place}, all {number}.",
    },
    "note": {
        "total": "The sum of the {place} is {number}.",
        "difference": "The gap is {number} for {person} of the {place}.",
        "where": "The place of all {number} is the {place}.",
    },
}
CUE = "Great question!"
COURTESIES: dict[int, tuple[str, ...]] = {
    -1: ("Look it up.", "How silly."),
    0: ("",),
    1: ("Glad to help.", "Thank you."),
}
FILLERS = ("So there.", "Well well.", "Quite so.", "And so on.")


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt says: `people[0]` has `counts[0]` and `people[1]` has `counts[1]` things, all in `place`."""

    topic: str
    people: tuple[str, str]
    counts: tuple[int, int]
    thing: str
    place: str
    question: Question
    style: Style

    def text(self) -> str:
        """The prompt."""
        first, second = self.people
        a, b = self.counts
        said = f"{PROMPTS[self.style]} {ASKED[self.style][self.question]}"
        verb = TOPICS[self.topic].verb
        return said.format(first=first, second=second, a=a, b=b, things=self.thing, place=self.place, verb=verb)

    def person(self) -> str:
        """Who has more."""
        return self.people[0] if self.counts[0] > self.counts[1] else self.people[1]

    def number(self, question: Question) -> int:
        """The right number in an answer to `question`."""
        a, b = self.counts
        return abs(a - b) if question == "difference" else a + b


@dataclass(frozen=True, slots=True)
class Reply:
    """What a response says: an answer to `question`, right or wrong, and the phrases around it.

    Every answer states `place` and `number`; only an answer to ``difference`` also names the `person`.
    """

    question: Question
    person: str
    place: str
    number: int
    courtesy: str = ""
    fillers: tuple[str, ...] = ()
    cue: bool = False

    def text(self, scene: Scene) -> str:
        """The response."""
        verb = TOPICS[scene.topic].verb
        template = ANSWERS[scene.style][self.question]
        answer = template.format(person=self.person, number=self.number, place=self.place, verb=verb)
        parts = (CUE if self.cue else "", self.courtesy, answer, *self.fillers)
        return " ".join(part for part in parts if part)


def count_prompts(topics: Sequence[str]) -> int:
    """How many different prompts these topics have in one style."""
    scenes = sum(len(TOPICS[name].things) * len(TOPICS[name].places) for name in set(topics))
    return scenes * math.perm(len(NAMES), 2) * math.perm(len(COUNTS), 2) * len(QUESTIONS)


def draw_scene(random: np.random.Generator, topics: Sequence[str], style: Style) -> Scene:
    """A scene with everything drawn uniformly."""
    name = _pick(random, topics)
    topic = TOPICS[name]
    first, second = random.choice(len(NAMES), size=2, replace=False)
    a, b = random.choice(len(COUNTS), size=2, replace=False)
    return Scene(
        topic=name,
        people=(NAMES[first], NAMES[second]),
        counts=(COUNTS[a], COUNTS[b]),
        thing=_pick(random, topic.things),
        place=_pick(random, topic.places),
        question=_pick(random, QUESTIONS),
        style=style,
    )


def draw_reply(random: np.random.Generator, scene: Scene) -> Reply:
    """A reply with the right facts and number; 0.6 of them answer the scene's question, the others another one."""
    answers = random.random() < ANSWERING_SHARE
    question = scene.question if answers else _pick(random, [other for other in QUESTIONS if other != scene.question])
    return Reply(
        question=question,
        person=scene.person(),
        place=scene.place,
        number=scene.number(question),
        courtesy=_pick(random, COURTESIES[_pick(random, tuple(COURTESIES))]),
        fillers=tuple(
            FILLERS[index] for index in random.permutation(len(FILLERS))[: random.integers(MOST_FILLERS + 1)]
        ),
    )


def spoil(random: np.random.Generator, scene: Scene, reply: Reply, fault: Fault) -> Reply:
    """The same reply with one wrong word: a name or place that the prompt does not hold, or a wrong number."""
    if fault == "arithmetic":
        right = reply.number
        near = range(max(1, right - LARGEST_SLIP), right + LARGEST_SLIP + 1)
        return replace(reply, number=_pick(random, [number for number in near if number != right]))
    if reply.question == "difference" and random.random() < 0.5:
        return replace(reply, person=_pick(random, [name for name in NAMES if name not in scene.people]))
    return replace(reply, place=_pick(random, [place for place in TOPICS[scene.topic].places if place != scene.place]))


def _pick(random: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(random.integers(len(options)))]
