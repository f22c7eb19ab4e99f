"""Conversations that are too long are cut as text, by one of three policies, in few renderings.

``left``
    Whole messages of the prompt are lost from its beginning, system messages apart; then the last of them loses the
    beginning of its text, then the system messages that of theirs. A response loses its end only where it is too long
    beside an emptied prompt. All responses keep the same prompt.
``right``
    A response loses its end, each as far as its own conversation needs; the prompt stays whole. This is what cutting
    rows of tokens at the right does to texts, without the loss of the template's last tokens.
``drop``
    Nothing is cut.

A conversation is too long for good where its response would lose all of its text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aplot_lightning.errors import UserError

if TYPE_CHECKING:
    from aplot_lightning.data.comparisons import Conversation, Message
    from aplot_lightning.data.encoding.tokens import Tokeniser

POLICIES = ("left", "right", "drop")
NEIGHBOURS = 4  # messages more or less that are tried where a template refuses a conversation without its beginning

Encoded = tuple[list[np.ndarray], list[int]]  # rows, and where their responses begin


@dataclass(slots=True)
class Shortened:
    """Conversations that fit: their rows, where the responses begin, and what was cut."""

    rows: list[np.ndarray]
    starts: list[int]
    cut_prompt: bool
    cut_responses: tuple[int, ...]


class Truncation:
    """Cuts conversations to `max_length` tokens.

    Args:
        max_length: tokens of a conversation.
        policy: one of `POLICIES`.
        tokeniser: counts the tokens of texts and cuts them.
        encode: renders and tokenises conversations; UserError where the template refuses one.
    """

    def __init__(
        self,
        max_length: int,
        policy: str,
        tokeniser: Tokeniser,
        encode: Callable[[Sequence[Sequence[Message]]], Encoded],
    ) -> None:
        self.max_length = max_length
        self.policy = policy
        self.tokeniser = tokeniser
        self.encode = encode

    def shorten(self, prompt: Conversation, responses: Sequence[Conversation], whole: Encoded) -> Shortened | None:
        """The conversations cut to fit; None where nothing helps.

        Args:
            prompt: what they all begin with; without it each response of several messages is cut for itself, its last
                message as the response to those before.
            responses: what follows the prompt.
            whole: their rows as they are.
        """
        if self.policy == "drop":
            return None
        if prompt or all(len(response) == 1 for response in responses):
            return self._cut(_Conversations(self, prompt, responses, whole))
        parts = []
        for place, response in enumerate(responses):
            own = ([whole[0][place]], [whole[1][place]])
            parts.append(self._cut(_Conversations(self, response[:-1], [response[-1:]], own)))
        if any(part is None for part in parts):
            return None
        return Shortened(
            [part.rows[0] for part in parts if part],
            [part.starts[0] for part in parts if part],
            any(part.cut_prompt for part in parts if part),
            tuple(place for place, part in enumerate(parts) if part and part.cut_responses),
        )

    def _cut(self, conversations: _Conversations) -> Shortened | None:
        try:
            if self.policy == "left":
                conversations.drop_messages()
                conversations.cut_prompt_texts()
            cut = conversations.cut_responses()
        except UserError:  # the template refuses what is left, an empty text as a rule
            return None
        if cut is None or conversations.excess():
            return None
        rows, starts = conversations.encoded
        return Shortened(rows, starts, conversations.prompt != conversations.whole_prompt, cut)


class _Conversations:
    """Conversations with a common prompt while they are cut; `encoded` always belongs to `prompt` and `responses`."""

    def __init__(
        self, truncation: Truncation, prompt: Sequence[Message], responses: Sequence[Conversation], encoded: Encoded
    ) -> None:
        self.truncation = truncation
        self.whole_prompt = list(prompt)
        self.prompt = list(prompt)
        self.responses = [list(response) for response in responses]
        self.encoded = (list(encoded[0]), list(encoded[1]))

    def excess(self) -> int:
        """Tokens by which the longest conversation is too long."""
        return _excess(self.encoded, self.truncation.max_length)

    def drop_messages(self) -> None:
        """Drops as few messages from the beginning of the prompt as help; where none do, all but the last.

        A conversation that the template refuses without its first messages, as one that begins with an answer, loses
        the next ones too.
        """
        places = [place for place, message in enumerate(self.prompt) if message["role"] != "system"]
        most = len(places) - 1
        if not self.excess() or most < 1:
            return
        tried: dict[int, tuple[int, Encoded] | None] = {}

        def attempt(count: int) -> tuple[int, Encoded] | None:
            """The conversations without `count` messages or the next more that the template takes."""
            for more in range(count, min(count + NEIGHBOURS, most + 1)):
                try:
                    return more, self._encoded(self._without(places[:more]))
                except UserError:
                    continue
            return None

        def fits(count: int) -> bool:
            tried[count] = attempt(count)
            found = tried[count]
            return found is not None and not _excess(found[1], self.truncation.max_length)

        best = _first(fits, self._guess(places[:-1]), most)
        if best is None:
            found = (attempt(count) for count in range(most, max(0, most - NEIGHBOURS), -1))
            chosen = next((each for each in found if each is not None), None)
        else:
            chosen = tried[best]
        if chosen is not None:
            self.prompt, self.encoded = self._without(places[: chosen[0]]), chosen[1]

    def cut_prompt_texts(self) -> None:
        """Cuts the beginnings of the texts that are left, from the last message to the first, system messages last."""
        others = [place for place, message in enumerate(self.prompt) if message["role"] != "system"]
        system = [place for place, message in enumerate(self.prompt) if message["role"] == "system"]
        step = 0
        while self.excess() and any(message["content"] for message in self.prompt):
            lost = self.excess() + step
            for place in (*reversed(others), *reversed(system)):
                if lost > 0 and (text := self.prompt[place]["content"]):
                    shorter, count = self.truncation.tokeniser.without(text, lost, keep="end")
                    self.prompt[place] = {**self.prompt[place], "content": shorter}
                    lost -= count
            self.encoded = self._encoded(self.prompt)
            step += 1  # a cut may save less than it should where tokens merge; few further ones are needed

    def cut_responses(self) -> tuple[int, ...] | None:
        """Cuts the end of each response that is too long; the places of these, None where nothing would be left."""
        rows, starts = self.encoded
        cut = []
        for place, response in enumerate(self.responses):
            step = 0
            while (excess := len(rows[place]) - self.truncation.max_length) > 0:
                text = response[-1]["content"]
                shorter, _ = self.truncation.tokeniser.without(text, excess + step, keep="beginning")
                if not shorter.strip():
                    return None
                response[-1] = {**response[-1], "content": shorter}
                (rows[place],), (starts[place],) = self.truncation.encode([[*self.prompt, *response]])
                step += 1
            if step:
                cut.append(place)
        return tuple(cut)

    def _without(self, places: Sequence[int]) -> list[Message]:
        lost = set(places)
        return [message for place, message in enumerate(self.prompt) if place not in lost]

    def _encoded(self, prompt: Sequence[Message]) -> Encoded:
        return self.truncation.encode([[*prompt, *response] for response in self.responses])

    def _guess(self, places: Sequence[int]) -> int:
        """About how many of these messages must go: what their texts weigh, and the template's words around each."""
        weights = np.asarray(self.truncation.tokeniser.count([message["content"] for message in self.prompt]))
        around = max(0, min(self.encoded[1]) - int(weights.sum())) / len(weights)
        return int(np.searchsorted(np.cumsum(weights[list(places)] + around), self.excess())) + 1


def _excess(encoded: Encoded, max_length: int) -> int:
    return max(0, max(len(row) for row in encoded[0]) - max_length)


def _first(holds: Callable[[int], bool], guess: int, last: int) -> int | None:
    """The first number from 1 to `last` that `holds`, which holds from there on; None without one.

    Two calls where `guess` is right, few where it is nearly right.
    """
    low, high = 0, last + 1
    probes = [guess, *(guess + sign * 4**step for step in range(7) for sign in (-1, 1))]
    while high - low > 1:
        middle = next((probe for probe in probes if low < probe < high), (low + high) // 2)
        if holds(middle):
            high = middle
        else:
            low = middle
    return high if high <= last else None
