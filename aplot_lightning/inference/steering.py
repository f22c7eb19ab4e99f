"""Generation that a reward model steers: best-of-n, and reward-guided speculative decoding (RSD, 2501.19324)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from aplot_lightning.errors import UserError
from aplot_lightning.inference.generation import Generator, Memory, Prompt, seeded
from aplot_lightning.model.reward_model import RewardModel


@dataclass(frozen=True)
class Sampled:
    """The samples of one prompt and their rewards.

    Attributes:
        responses: n texts in the order of sampling.
        rewards: one each; minus infinity for an empty response, which no reward model scores.
        best: place of the largest reward, the first one of several.
        tied: places of all of that reward; one where there is no tie.
    """

    responses: list[str]
    rewards: list[float]
    best: int
    tied: list[int]

    @property
    def response(self) -> str:
        """The best one."""
        return self.responses[self.best]


def best_of_n(
    generator: Generator,
    reward_model: RewardModel,
    prompt: Prompt,
    n: int,
    *,
    max_tokens: int = 512,
    batch_size: int = 16,
    seed: int | None = 0,
) -> Sampled:
    """Samples n responses and takes the one with the largest reward.

    Args:
        generator: with a temperature above 0 where n is more than 1.
        reward_model: what they are scored by.
        prompt: text or messages.
        n: number of samples.
        max_tokens: of each response.
        batch_size: responses that are generated, and scored, at once.
        seed: of the samples; None goes on with torch's random state.

    Raises:
        UserError: n or max_tokens is below 1, or several samples are asked of a generator that always says the same.
    """
    _at_least_one(n=n, max_tokens=max_tokens, batch_size=batch_size)
    if n > 1 and generator.temperature == 0:
        raise UserError(f"n is {n}, but at temperature 0 all samples are the same: give the generator a temperature")
    tokens = generator.encode_prompt(prompt)
    responses: list[str] = []
    with seeded(seed):
        while len(responses) < n:
            count = min(batch_size, n - len(responses))
            responses += map(generator.decode, generator.continue_tokens(tokens, max_tokens, count=count))
    rewards = score_responses(reward_model, prompt, responses, batch_size=batch_size)
    tied = [place for place, reward in enumerate(rewards) if reward == max(rewards)]
    return Sampled(responses, rewards, tied[0], tied)


def score_responses(
    reward_model: RewardModel, prompt: Prompt, responses: Sequence[str], *, batch_size: int = 16
) -> list[float]:
    """The reward of each response to the prompt; minus infinity for one that is empty."""
    given = [place for place, response in enumerate(responses) if response.strip()]
    items = [{"prompt": prompt, "response": responses[place]} for place in given]
    rewards = [-inf] * len(responses)
    for place, reward in zip(given, reward_model.score(items, batch_size=batch_size), strict=True):
        rewards[place] = reward
    return rewards


@dataclass(frozen=True)
class Step:
    """One step of a steered response.

    Attributes:
        text: what it adds to the response.
        by: who wrote it: ``draft`` where its step was kept, ``target`` where it was not.
        reward: calibrated reward of the response with the draft's step; the target's is not scored.
        draft_tokens: tokens that the draft generated for it, kept or not.
        target_tokens: tokens that the target generated for it.
    """

    text: str
    by: Literal["draft", "target"]
    reward: float
    draft_tokens: int
    target_tokens: int


@dataclass(frozen=True)
class Steered:
    """A response made of steps.

    Attributes:
        steps: in order.
        finished: a model ended it; False where it ran out of tokens.
    """

    steps: tuple[Step, ...]
    finished: bool

    @property
    def text(self) -> str:
        """The response."""
        return "".join(step.text for step in self.steps)

    @property
    def accepted(self) -> int:
        """Steps of the draft that were kept."""
        return sum(step.by == "draft" for step in self.steps)

    @property
    def draft_tokens(self) -> int:
        """Tokens that the draft generated, with those of steps that were thrown away."""
        return sum(step.draft_tokens for step in self.steps)

    @property
    def target_tokens(self) -> int:
        """Tokens that the target generated; all of them are in the response."""
        return sum(step.target_tokens for step in self.steps)

    @property
    def kept_draft_tokens(self) -> int:
        """Tokens of the response that are the draft's."""
        return sum(step.draft_tokens for step in self.steps if step.by == "draft")


def speculative_decode(
    draft: Generator,
    target: Generator,
    reward_model: RewardModel,
    prompt: Prompt,
    threshold: float,
    *,
    calibration: Callable[[float], float] | None = None,
    max_tokens: int = 512,
    seed: int | None = 0,
) -> Steered:
    """Reward-guided speculative decoding (RSD 2501.19324).

    The draft writes a step, up to a blank line. It is kept where the reward of the response so far with it is at least
    the threshold; else the target writes the step in its place, which is not scored. A threshold of -inf is the draft
    alone and +inf the target alone, token for token when both are greedy.

    Each model continues its own tokens: where the two read text alike (one vocabulary), the other's tokens are taken
    over as they are, else the other's text is encoded. A step ends with the token that completes the blank line. What a
    model has computed of the text so far is kept, where its cache can be cut.

    Args:
        draft: the small model.
        target: the large one.
        reward_model: scores the prompt with the response so far.
        prompt: text or messages.
        threshold: on the scale of the calibrated reward; the paper's is 0.7 of [0, 1].
        calibration: reward -> [0, 1], for example the sigmoid that a calibration fitted; None takes rewards as they
            are.
        max_tokens: tokens of the response.
        seed: of the samples where a temperature is above 0; None goes on with torch's random state.

    Raises:
        UserError: max_tokens is below 1, or the threshold is no number.
    """
    _at_least_one(max_tokens=max_tokens)
    if threshold != threshold:
        raise UserError("threshold is nan: give a number, -inf for the draft alone or inf for the target alone")
    alike = draft.tokenizer.get_vocab() == target.tokenizer.get_vocab()
    writers = {"draft": _Writer(draft, prompt), "target": _Writer(target, prompt)}
    steps: list[Step] = []
    length, text, finished = 0, "", False
    with seeded(seed):
        while not finished and length < max_tokens:
            limit = max_tokens - length
            proposal = kept = writers["draft"].propose(limit)
            (reward,) = score_responses(reward_model, prompt, [text + proposal.text])
            if calibration is not None and reward != -inf:
                reward = calibration(reward)
            by: Literal["draft", "target"] = "draft" if reward >= threshold else "target"
            if by == "target":
                kept = writers["target"].propose(limit)
            for name, writer in writers.items():
                writer.take(kept, own=name == by or alike)
            steps.append(Step(kept.text, by, reward, len(proposal.tokens), len(kept.tokens) if by == "target" else 0))
            length, text, finished = length + len(kept.tokens), text + kept.text, kept.last
    return Steered(tuple(steps), finished)


@dataclass(frozen=True)
class _Proposal:
    """Tokens of a step as its writer made them, their text, and whether they end the response."""

    tokens: list[int]
    text: str
    last: bool


class _Writer:
    """A generator in the middle of a response."""

    def __init__(self, generator: Generator, prompt: Prompt) -> None:
        self.generator = generator
        self.tokens = generator.encode_prompt(prompt)
        self.start = len(self.tokens)
        self.memory = Memory()

    def propose(self, limit: int) -> _Proposal:
        (tokens,) = self.generator.continue_tokens(self.tokens, limit, step=True, memory=self.memory)
        response = self.tokens[self.start :]
        # a token may only have its text beside the one before it (bytes of one sign)
        text = self.generator.decode([*response, *tokens])[len(self.generator.decode(response)) :]
        return _Proposal(tokens, text, not tokens or tokens[-1] in self.generator.ends)

    def take(self, step: _Proposal, own: bool) -> None:
        """Goes on behind a step: its tokens where they mean the same here, else its text."""
        self.tokens += step.tokens if own else self.generator.tokenizer.encode(step.text, add_special_tokens=False)


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
