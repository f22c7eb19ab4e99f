"""What a comparison is, and how comparisons with the same prompt are recognised."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

Message = dict[str, str]
Conversation = tuple[Message, ...]

# Why a row is refused. Of several faults of one row the first in this order counts.
KINDS = (
    "not_json",
    "missing_field",
    "empty_response",
    "identical_responses",
    "tie",
    "contradiction",
    "duplicate",
    "too_long",
    "identical_after_truncation",
    "leak",
)


class RowError(Exception):
    """A row that cannot be used: `kind` is one of `KINDS`, the message (one line) says what is wrong with the row."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two or more responses, and which of them is preferred to which.

    Attributes:
        prompt: the messages that all conversations begin with; () where the sides have different prompts.
        responses: what follows the prompt, one tuple of messages each; a plain response is one assistant message.
        pairs: (winner, loser), places in `responses`; at least one.
        margin: how much better the data says the winner is; finite.
        target: probability in [0, 1] that the winner is the better one; None for a plain pair (certain).
        scores: the quality that the data gives each response; finite.
        source, subset: where the row says it comes from (else the source's own name), and its part of that source.
        id: the row's own id, else `where`.
        where: file and line of the row, ``pairs.jsonl:12``.
    """

    prompt: Conversation
    responses: tuple[Conversation, ...]
    pairs: tuple[tuple[int, int], ...]
    margin: float | None
    target: float | None
    scores: tuple[float, ...] | None
    source: str
    subset: str
    id: str
    where: str


def normalised_text(text: str) -> str:
    """`text` as prompts are compared: NFKC, case folded, each stretch of white space one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def prompt_key(comparison: Comparison) -> bytes:
    """A 16-byte digest of the normalised prompt: equal for prompts that differ in case, white space or width only.

    Where the sides have prompts of their own these are what counts; a row without any prompt has a key of its own, made
    of its responses.
    """
    if comparison.prompt:
        messages: Sequence[Message] = comparison.prompt
    else:
        messages = [message for response in comparison.responses for message in response[:-1]]
        messages = messages or [message for response in comparison.responses for message in response]
    return digest(*(normalised_text(message["content"]) for message in messages))


def first_user_turn(comparison: Comparison) -> str:
    """What the user said first, by which held-out prompts are grouped; without a user the first message's text."""
    messages = comparison.prompt + comparison.responses[0]
    return next((message for message in messages if message["role"] == "user"), messages[0])["content"]


def response_text(comparison: Comparison, place: int) -> str:
    """The text of a response: what follows the prompt, several messages with an empty line between them."""
    return "\n\n".join(message["content"] for message in comparison.responses[place])


def digest(*parts: str | bytes) -> bytes:
    """A 16-byte BLAKE2b digest of a sequence of texts or bytes; where one part ends counts."""
    state = blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.digest()
