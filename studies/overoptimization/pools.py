"""Pools of responses with a known true reward, from which best-of-n samples in the embedded world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aplot_lightning.data.comparisons import Conversation
from aplot_lightning.data.world import true_reward
from aplot_lightning.data.world.language import (
    FAULTS,
    NEW_TOPICS,
    TRAIN_TOPICS,
    Reply,
    Scene,
    draw_reply,
    draw_scene,
    spoil,
)
from aplot_lightning.data.world.preferences import FAULT_SHARE
from aplot_lightning.data.world.qualities import qualities_of

TOPICS = {"none": tuple(TRAIN_TOPICS), "new_topics": tuple(NEW_TOPICS)}
CUE_SHARE = 0.3  # share that begins with the stock phrase, as in training, but whatever the quality
MEASURED = ("gold", "answers", "facts", "arithmetic", "politeness", "fillers", "cue")


@dataclass
class Pool:
    """N independent responses of one prompt, drawn like the responses of ordinary training pairs.

    Attributes:
        prompt: the text.
        texts: the distinct texts, in the order in which they first occur.
        text: (N,) int64, each sample's index in `texts`.
        measured: (N, 7) float64, true reward, its components and the cue, in the order of `MEASURED`.
    """

    prompt: str
    texts: list[str]
    text: np.ndarray
    measured: np.ndarray

    def conversations(self) -> list[Conversation]:
        """One for each of `texts`."""
        return [
            ({"role": "user", "content": self.prompt}, {"role": "assistant", "content": text}) for text in self.texts
        ]


def draw_pools(world: str, prompts: int, size: int, seed: int) -> list[Pool]:
    """Pools of `prompts` distinct prompts; fewer prompts are a prefix of more."""
    pools: dict[str, Pool] = {}
    for index in range(10 * prompts):
        random = np.random.default_rng([seed, list(TOPICS).index(world), index])
        scene = draw_scene(random, TOPICS[world], "plain")
        if len(pools) < prompts and scene.text() not in pools:
            pools[scene.text()] = _draw_pool(random, scene, size)
    return list(pools.values())


def _draw_pool(random: np.random.Generator, scene: Scene, size: int) -> Pool:
    indices: dict[str, int] = {}
    text, measured = [], []
    for _ in range(size):
        reply = _draw_reply(random, scene)
        text.append(indices.setdefault(reply.text(scene), len(indices)))
        measured.append(_measure(scene, reply))
    return Pool(scene.text(), list(indices), np.array(text), np.array(measured))


def _draw_reply(random: np.random.Generator, scene: Scene) -> Reply:
    reply = draw_reply(random, scene)
    for fault in FAULTS:
        if random.random() < FAULT_SHARE[fault]:
            reply = spoil(random, scene, reply, fault)
    return replace(reply, cue=bool(random.random() < CUE_SHARE))


def _measure(scene: Scene, reply: Reply) -> Sequence[float]:
    q = qualities_of(scene, reply)
    return (true_reward(q), q.answers, q.facts, q.arithmetic, q.politeness, q.fillers, reply.cue)
