"""PreferenceWorld: pairs of replies, a preference drawn from the true reward, and the dials."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from aplot_lightning.data.sources import Source, fingerprint_of
from aplot_lightning.data.world.language import (
    FAULTS,
    NEW_TOPICS,
    STYLES,
    TOPICS,
    TRAIN_TOPICS,
    Fault,
    Reply,
    Scene,
    Style,
    count_prompts,
    draw_reply,
    draw_scene,
    spoil,
)
from aplot_lightning.data.world.qualities import Qualities, qualities_of, true_reward
from aplot_lightning.errors import UserError

Shift = Literal["none", "new_topics", "new_style", "reversed_cue", "hard_pairs"]
SHIFTS: tuple[Shift, ...] = ("none", "new_topics", "new_style", "reversed_cue", "hard_pairs")
FAULT_SHARE: dict[Fault, float] = {"facts": 0.45, "arithmetic": 0.3}  # of the replies in ordinary pairs


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of annotators: how often they slip, as a multiple of `label_noise`, and how exactly they rate."""

    slips: float
    rating_noise: float


VERSION = "1"  # to be raised where the same dials give other rows

POOLS = {"experts": Pool(slips=0.5, rating_noise=0.2), "crowd": Pool(slips=1.5, rating_noise=0.6)}


@dataclass(frozen=True, slots=True)
class LatentPair:
    """What lies behind one row: only for checks and studies, never part of `rows()`."""

    chosen: Qualities
    rejected: Qualities
    hard: bool
    """The two responses differ in one word."""
    cue: Literal["chosen", "rejected"] | None
    """The side that carries the stock phrase."""
    slipped: bool
    """The annotator's preference was turned round by label noise."""
    better_probability: float
    """Probability, given both texts and the pool, that the response with the larger true reward is the chosen one."""

    @property
    def gap(self) -> float:
        """True reward of chosen minus rejected; never zero, negative where the worse one was preferred."""
        return true_reward(self.chosen) - true_reward(self.rejected)


class PreferenceWorld(Source):
    """A source of preference pairs whose true reward is known (see the package's docstring for the sets measured).

    Dials that are left at None take the shift's value: that of the training distribution, except where the shift
    moves it. A dial that is given wins over the shift.

    Args:
        shift: ``none`` is the training distribution; ``new_topics`` has verbs, things and places unseen in training;
            ``new_style`` other sentences for prompts and answers; ``reversed_cue`` the cue on the worse response as
            often as training has it on the better; ``hard_pairs`` only pairs that differ in one word.
        pairs: rows of the set, each with a prompt of its own; a smaller set is the beginning of a larger one.
        seed: every (seed, shift) draws from a stream of its own. Two sets of 4,000 on the same topics share 0.4
            prompts in expectation.
        hard_share: share of pairs that are equal but for one word (a name, a place or a number). None: 0.15, or 1.
        cue_share: share of the other pairs in which one response, never both, begins with the stock phrase.
        cue_strength: where there is a cue it is on the truly better response with probability (1 + cue_strength) / 2;
            in [-1, 1]. The cue depends on the true reward, not on the drawn label, so it says nothing about a label
            that both texts do not say: no reward can beat `bayes_accuracy`. None: 0.9, or -0.9.
        temperature: an annotator prefers the better response with probability sigmoid(true gap / temperature).
        label_noise: probability, on average over the two pools, that this preference is then turned round; in
            [0, 0.3]. A pair's ``source`` is ``experts`` (half of it, close ratings) or ``crowd`` (half as much again,
            rough ratings), with equal chances.
        topics: names out of `TOPICS`, drawn uniformly. None: `TRAIN_TOPICS`, or `NEW_TOPICS`.
        style: ``plain`` or ``note``. None: plain, or note.

    A row's ``chosen_score`` and ``rejected_score`` are the true reward plus the pool's normal rating noise, drawn apart
    from the label; ``margin`` is how far they put chosen above rejected, 0 where they disagree with the label.

    Raises:
        UserError: a dial out of its range, by its name.
    """

    def __init__(
        self,
        shift: Shift = "none",
        pairs: int = 4000,
        seed: int = 1,
        hard_share: float | None = None,
        cue_share: float = 0.6,
        cue_strength: float | None = None,
        temperature: float = 0.25,
        label_noise: float = 0.04,
        topics: Sequence[str] | None = None,
        style: Style | None = None,
    ) -> None:
        _choice("shift", shift, SHIFTS)
        self.name = "world" if shift == "none" else f"world-{shift}"
        self.shift = shift
        self.pairs = _whole("pairs", pairs, 1)
        self.seed = _whole("seed", seed, 0)
        default_hard, default_cue = (1.0 if shift == "hard_pairs" else 0.15), (-0.9 if shift == "reversed_cue" else 0.9)
        self.hard_share = _within("hard_share", default_hard if hard_share is None else hard_share, 0.0, 1.0)
        self.cue_share = _within("cue_share", cue_share, 0.0, 1.0)
        self.cue_strength = _within("cue_strength", default_cue if cue_strength is None else cue_strength, -1.0, 1.0)
        self.temperature = _within("temperature", temperature, 0.01, 100.0)
        self.label_noise = _within("label_noise", label_noise, 0.0, 0.3)
        self.topics = _topics(shift, topics, self.pairs)
        default_style: Style = "note" if shift == "new_style" else "plain"
        self.style: Style = default_style if style is None else style
        _choice("style", self.style, STYLES)

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, row) for every pair: where is ``world:12`` for the twelfth, row is a pair in the public layout."""
        for where, row, _ in self.pairs_with_latents():
            yield where, row

    def fingerprint(self) -> str:
        """Hex digest of the dials, of which the rows are a function."""
        dials = (self.shift, self.pairs, self.seed, self.hard_share, self.cue_share, self.cue_strength)
        others = (self.temperature, self.label_noise, self.topics, self.style)
        return fingerprint_of(type(self).__qualname__, VERSION, self.name, repr(dials + others))

    def pairs_with_latents(self) -> Iterator[tuple[str, dict[str, Any], LatentPair]]:
        """`rows()` with what lies behind each row."""
        random = np.random.default_rng([self.seed, SHIFTS.index(self.shift)])
        seen: set[str] = set()
        for number in range(1, self.pairs + 1):
            scene = draw_scene(random, self.topics, self.style)
            while (prompt := scene.text()) in seen:
                scene = draw_scene(random, self.topics, self.style)
            seen.add(prompt)
            row, latent = self._pair(random, scene)
            row = {"id": f"{self.name}-{self.seed}-{number}", "prompt": prompt, **row, "subset": scene.topic}
            yield f"{self.name}:{number}", row, latent

    def _pair(self, random: np.random.Generator, scene: Scene) -> tuple[dict[str, Any], LatentPair]:
        """Two replies to the scene and one annotator's word on them: the row without its names, and its latents."""
        hard = bool(random.random() < self.hard_share)
        better, worse = _near_identical(random, scene) if hard else self._independent(random, scene)
        source = tuple(POOLS)[random.integers(len(POOLS))]
        rewards = [true_reward(qualities_of(scene, reply)) for reply in (better, worse)]
        better_chosen, slipped, probability = self._prefer(random, rewards[0] - rewards[1], POOLS[source])
        ratings = [0.0, 0.0]
        while ratings[0] == ratings[1]:  # equal scores would be a tie
            ratings = [round(reward + POOLS[source].rating_noise * random.standard_normal(), 3) for reward in rewards]
        chosen, rejected = (better, worse) if better_chosen else (worse, better)
        chosen_score, rejected_score = ratings if better_chosen else reversed(ratings)
        row = {
            "chosen": chosen.text(scene),
            "rejected": rejected.text(scene),
            "chosen_score": chosen_score,
            "rejected_score": rejected_score,
            "margin": max(0.0, round(chosen_score - rejected_score, 3)),
            "source": source,
        }
        latent = LatentPair(
            chosen=qualities_of(scene, chosen),
            rejected=qualities_of(scene, rejected),
            hard=hard,
            cue="chosen" if chosen.cue else "rejected" if rejected.cue else None,
            slipped=slipped,
            better_probability=probability,
        )
        return row, latent

    def _prefer(self, random: np.random.Generator, gap: float, pool: Pool) -> tuple[bool, bool, float]:
        """Whether the better response is chosen, whether label noise struck, and how probable the former was."""
        sincere = 1.0 / (1.0 + math.exp(-gap / self.temperature))
        noise = pool.slips * self.label_noise
        slipped = bool(random.random() < noise)
        better_chosen = bool(random.random() < sincere) != slipped
        return better_chosen, slipped, (1.0 - noise) * sincere + noise * (1.0 - sincere)

    def _independent(self, random: np.random.Generator, scene: Scene) -> tuple[Reply, Reply]:
        """Two replies drawn apart with different qualities, better first, perhaps one of them with the cue."""
        first = second = _faulty_reply(random, scene)
        while qualities_of(scene, first) == qualities_of(scene, second):
            second = _faulty_reply(random, scene)
        better, worse = _better_first(scene, first, second)
        if random.random() < self.cue_share:
            if random.random() < (1.0 + self.cue_strength) / 2.0:
                better = replace(better, cue=True)
            else:
                worse = replace(worse, cue=True)
        return better, worse


def bayes_accuracy(world: PreferenceWorld) -> float:
    """Expected accuracy of the true reward on the world's labels: no reward model can be expected to do better.

    The mean over the world's pairs of max(p, 1 - p), where p = (1 - s) sigmoid(gap / temperature) +
    s (1 - sigmoid(gap / temperature)) is the probability, given both texts and the annotator pool with its share s of
    slips, that the response with the larger true reward was chosen. It is exact for the texts of this world.
    """
    chances = [latent.better_probability for _, _, latent in world.pairs_with_latents()]
    return float(np.mean([max(chance, 1.0 - chance) for chance in chances]))


def _faulty_reply(random: np.random.Generator, scene: Scene) -> Reply:
    """A reply in which each fault occurs on its own with a fixed probability."""
    reply = draw_reply(random, scene)
    for fault in FAULTS:
        if random.random() < FAULT_SHARE[fault]:
            reply = spoil(random, scene, reply, fault)
    return reply


def _near_identical(random: np.random.Generator, scene: Scene) -> tuple[Reply, Reply]:
    """A reply without a fault, and the same one with one wrong word."""
    better = draw_reply(random, scene)
    return better, spoil(random, scene, better, FAULTS[random.integers(len(FAULTS))])


def _better_first(scene: Scene, first: Reply, second: Reply) -> tuple[Reply, Reply]:
    if true_reward(qualities_of(scene, first)) > true_reward(qualities_of(scene, second)):
        return first, second
    return second, first


def _topics(shift: Shift, topics: Sequence[str] | None, pairs: int) -> tuple[str, ...]:
    """The topics to draw from, which must have far more prompts than there are pairs."""
    default = NEW_TOPICS if shift == "new_topics" else TRAIN_TOPICS
    chosen = tuple(default if topics is None else topics)
    if not chosen:
        raise UserError("PreferenceWorld: topics is empty: name at least one, or leave it out")
    for topic in chosen:
        _choice("topics", topic, tuple(TOPICS))
    most = count_prompts(chosen) // 10
    if pairs > most:
        raise UserError(f"PreferenceWorld: pairs = {pairs} is too many for distinct prompts: at most {most} here")
    return chosen


def _choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"PreferenceWorld: {name} = {value!r} is unknown: choose from {', '.join(allowed)}")


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"PreferenceWorld: {name} = {value!r} must be a whole number of at least {least}")
    return value


def _within(name: str, value: float, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UserError(f"PreferenceWorld: {name} = {value!r} must be a number from {low:g} to {high:g}")
    return float(value)
