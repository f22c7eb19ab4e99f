"""The conversations of a row: where the prompt ends and the responses begin, in every layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aplot_lightning.data.comparisons.comparison import Conversation, RowError
from aplot_lightning.data.comparisons.values import messages_of, text_of

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def conversation_of(prompt: Any, response: Any) -> Conversation:
    """The whole conversation of a ``{"prompt", "response"}`` row, the response's messages last.

    Args:
        prompt: text, an HH-RLHF transcript, messages, or None where `response` is a whole conversation.
        response: text or messages, with or without the prompt's messages before it.

    Raises:
        RowError: neither text nor messages, or an empty response.
    """
    head, (tail,) = conversations_of(prompt, {"response": response})
    refuse_empty(tail, "response")
    return head + tail


def conversations_of(prompt: Any, sides: Mapping[str, Any]) -> tuple[Conversation, tuple[Conversation, ...]]:
    """The common prompt and what follows it on each side; `sides` maps the name of each to text or messages."""
    if prompt is None:
        return _split_common([_whole(value, name) for name, value in sides.items()])
    turns = _turns(prompt) if isinstance(prompt, str) else None
    if turns is not None and turns[-1] == {"role": "assistant", "content": ""}:
        turns = turns[:-1]  # the transcript's last "Assistant:" only asks for the response
    if turns is not None:
        head = turns
    elif isinstance(prompt, str):
        head = ({"role": "user", "content": text_of(prompt, "prompt")},)
    else:
        head = messages_of(prompt, "prompt")
    return _after_prompt(head, [_answer(value, name, head, turns is not None) for name, value in sides.items()])


def _whole(value: Any, name: str) -> Conversation:
    """A whole conversation: messages, a transcript, or text without any structure."""
    if not isinstance(value, str):
        return messages_of(value, name)
    return _turns(value) or ({"role": "assistant", "content": text_of(value, name)},)


def _answer(value: Any, name: str, prompt: Conversation, transcript: bool) -> Conversation:
    """A response beside its prompt; text is a transcript only where it repeats the prompt: answers hold dialogues."""
    if not isinstance(value, str):
        return messages_of(value, name)
    turns = _turns(value)
    if turns is not None and len(turns) > len(prompt) > 0 and _same(turns[: len(prompt)], prompt):
        return turns
    text = text_of(value, name)
    return ({"role": "assistant", "content": text.strip() if transcript else text},)


def _turns(text: str) -> Conversation | None:
    """The turns of an HH-RLHF transcript, white space around them removed; None for any other text."""
    start = text.lstrip()
    if not start.startswith("Human:") or not (text.startswith("\n\nHuman:") or "\n\nAssistant:" in start):
        return None
    _, *parts = TURN.split(start)
    speakers, contents = parts[::2], parts[1::2]
    return tuple(
        {"role": SPEAKERS[speaker], "content": text_of(content.strip(), "transcript")}
        for speaker, content in zip(speakers, contents, strict=True)
    )


def _split_common(sides: Sequence[Conversation]) -> tuple[Conversation, tuple[Conversation, ...]]:
    """The leading messages that all conversations share, and the rest of each: at least its last message.

    Only a conversation that stops at a user's turn where the others go on keeps nothing: it has no response.
    """
    shortest = min(sides, key=len)
    unanswered = bool(shortest) and shortest[-1]["role"] == "user" and any(len(side) > len(shortest) for side in sides)
    limit = len(shortest) if unanswered else len(shortest) - 1
    common = 0
    while common < limit and all(side[common] == shortest[common] for side in sides):
        common += 1
    return shortest[:common], tuple(side[common:] for side in sides)


def _after_prompt(prompt: Conversation, sides: Sequence[Conversation]) -> tuple[Conversation, tuple[Conversation, ...]]:
    """Prompt and responses where the sides may repeat the prompt's end or hold all of it, as UltraFeedback's do."""
    shortest = min(len(side) for side in sides)
    for repeated in range(min(len(prompt), shortest - 1), 0, -1):
        if all(_same(side[:repeated], prompt[-repeated:]) for side in sides):
            return prompt, tuple(side[repeated:] for side in sides)
    common, rest = _split_common(sides)
    whole = bool(prompt and common) and common[0]["role"] != "assistant"  # an answer's first turn is the assistant's
    starts = range(len(common) - len(prompt) + 1) if whole else ()
    if any(_same(common[start : start + len(prompt)], prompt) for start in starts):
        return common, rest
    return prompt, tuple(sides)


def _same(some: Conversation, others: Conversation) -> bool:
    return len(some) == len(others) and all(
        one["role"] == other["role"] and one["content"].strip() == other["content"].strip()
        for one, other in zip(some, others, strict=True)
    )


def refuse_empty(response: Conversation, name: str) -> None:
    """Raises RowError (empty_response) where a response's last message, the one that is judged, has no text."""
    if not response or not response[-1]["content"].strip():
        raise RowError("empty_response", f"{name} has no text")
