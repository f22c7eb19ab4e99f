"""What a comparison is, and how a row of somebody's data becomes one or is refused with a reason.

A row's layout is told by its fields alone: ``prompt`` with ``chosen`` and ``rejected``, these two without a prompt
(whole conversations, HH-RLHF's transcripts among them), or many ``responses`` with ``scores`` or ``ranks``.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

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

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


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


def parse_comparison(row: Any, where: str, source_name: str) -> Comparison:
    """One comparison out of a row in any of the layouts of the module's docstring; a field that is null is absent.

    Args:
        row: the row, usually a dict; extra fields are ignored.
        where: file and line, kept for messages.
        source_name: the comparison's source where the row names none.

    Raises:
        RowError: the row cannot be used; kind not_json (no object), missing_field (also of the wrong type or out of its
            range), empty_response, identical_responses or tie.
    """
    if not isinstance(row, Mapping):
        raise RowError("not_json", f"not a JSON object but {_kind_of(row)}")
    fields = {name: value for name, value in row.items() if value is not None}
    many = "responses" in fields and "chosen" not in fields and "rejected" not in fields
    if many:
        sides = _list_of_responses(fields)
        pairs, scores = _orders(fields, len(sides))
    else:
        sides = {name: _required(fields, name) for name in ("chosen", "rejected")}
        pairs, scores = ((0, 1),), _pair_scores(fields)
    prompt, responses = _conversations(fields.get("prompt"), sides)
    comparison = Comparison(
        prompt=prompt,
        responses=responses,
        pairs=pairs,
        margin=_number(fields["margin"], "margin") if "margin" in fields else None,
        target=_target(fields["target"]) if "target" in fields else None,
        scores=scores,
        source=_label(fields, "source", source_name),
        subset=_label(fields, "subset", ""),
        id=_label(fields, "id", where),
        where=where,
    )
    _refuse_unusable(comparison, tuple(sides))
    return comparison


def conversation_of(prompt: Any, response: Any) -> Conversation:
    """The whole conversation of a ``{"prompt", "response"}`` row, the response's messages last.

    Args:
        prompt: text, an HH-RLHF transcript, messages, or None where `response` is a whole conversation.
        response: text or messages, with or without the prompt's messages before it.

    Raises:
        RowError: neither text nor messages, or an empty response.
    """
    head, (tail,) = _conversations(prompt, {"response": response})
    _refuse_empty(tail, "response")
    return head + tail


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


# The sides of a row


def _conversations(prompt: Any, sides: Mapping[str, Any]) -> tuple[Conversation, tuple[Conversation, ...]]:
    """The common prompt and what follows it on each side; `sides` maps the name of each to text or messages."""
    if prompt is None:
        return _split_common([_whole(value, name) for name, value in sides.items()])
    turns = _turns(prompt) if isinstance(prompt, str) else None
    if turns is not None and turns[-1] == {"role": "assistant", "content": ""}:
        turns = turns[:-1]  # the transcript's last "Assistant:" only asks for the response
    if turns is not None:
        head = turns
    elif isinstance(prompt, str):
        head = ({"role": "user", "content": _text(prompt, "prompt")},)
    else:
        head = _messages(prompt, "prompt")
    return _after_prompt(head, [_answer(value, name, head, turns is not None) for name, value in sides.items()])


def _whole(value: Any, name: str) -> Conversation:
    """A whole conversation: messages, a transcript, or text without any structure."""
    if not isinstance(value, str):
        return _messages(value, name)
    return _turns(value) or ({"role": "assistant", "content": _text(value, name)},)


def _answer(value: Any, name: str, prompt: Conversation, transcript: bool) -> Conversation:
    """A response beside its prompt; text is a transcript only where it repeats the prompt: answers hold dialogues."""
    if not isinstance(value, str):
        return _messages(value, name)
    turns = _turns(value)
    if turns is not None and len(turns) > len(prompt) > 0 and _same(turns[: len(prompt)], prompt):
        return turns
    text = _text(value, name)
    return ({"role": "assistant", "content": text.strip() if transcript else text},)


def _turns(text: str) -> Conversation | None:
    """The turns of an HH-RLHF transcript, white space around them removed; None for any other text."""
    start = text.lstrip()
    if not start.startswith("Human:") or not (text.startswith("\n\nHuman:") or "\n\nAssistant:" in start):
        return None
    _, *parts = TURN.split(start)
    speakers, contents = parts[::2], parts[1::2]
    return tuple(
        {"role": SPEAKERS[speaker], "content": _text(content.strip(), "transcript")}
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


def _refuse_unusable(comparison: Comparison, names: Sequence[str]) -> None:
    responses, pairs, scores = comparison.responses, comparison.pairs, comparison.scores
    for name, response in zip(names, responses, strict=True):
        _refuse_empty(response, name)
    compared = pairs or tuple((0, place) for place in range(1, len(names)))
    for one, other in compared:
        if responses[one] == responses[other]:
            raise RowError("identical_responses", f"{names[one]} and {names[other]} are the same")
    if not pairs or (scores is not None and any(scores[winner] == scores[loser] for winner, loser in pairs)):
        raise RowError("tie", f"{' and '.join(names[:3])}{' ...' if len(names) > 3 else ''} are rated the same")


def _refuse_empty(response: Conversation, name: str) -> None:
    if not response or not response[-1]["content"].strip():
        raise RowError("empty_response", f"{name} has no text")


# The fields of a row


def _list_of_responses(fields: Mapping[str, Any]) -> dict[str, Any]:
    values = fields["responses"]
    if not isinstance(values, list) or len(values) < 2:
        raise RowError("missing_field", '"responses" is not a list of two or more')
    return {f"responses[{place}]": value for place, value in enumerate(values)}


def _orders(fields: Mapping[str, Any], count: int) -> tuple[tuple[tuple[int, int], ...], tuple[float, ...] | None]:
    """Every strict order among `count` responses, and their scores; a smaller rank is a better one and no score."""
    name = "scores" if "scores" in fields else "ranks"
    values = _required(fields, name, 'no "scores" and no "ranks"')
    if not isinstance(values, list) or len(values) != count:
        raise RowError("missing_field", f'"{name}" is not a list of {count} numbers, one for each response')
    numbers = tuple(_number(value, f"{name}[{place}]") for place, value in enumerate(values))
    sign = 1 if name == "scores" else -1
    places = range(count)
    pairs = tuple((one, other) for one in places for other in places if sign * numbers[one] > sign * numbers[other])
    return pairs, numbers if name == "scores" else None


def _pair_scores(fields: Mapping[str, Any]) -> tuple[float, float] | None:
    """``chosen_score`` and ``rejected_score``, in UltraFeedback's binarized layout ``score_chosen`` and ..."""
    found = []
    for side in ("chosen", "rejected"):
        name = next((name for name in (f"{side}_score", f"score_{side}") if name in fields), None)
        found.append(None if name is None else _number(fields[name], name))
    chosen, rejected = found
    if chosen is None and rejected is None:
        return None
    if chosen is None or rejected is None:
        raise RowError(
            "missing_field", f'no "{"chosen" if chosen is None else "rejected"}_score" beside the other score'
        )
    return chosen, rejected


def _required(fields: Mapping[str, Any], name: str, message: str = "") -> Any:
    if name not in fields:
        there = ", ".join(repr(str(field)[:30]) for field in list(fields)[:8]) or "nothing"
        raise RowError("missing_field", f"{message or f'no {chr(34)}{name}{chr(34)}'} (the row has {there})")
    return fields[name]


def _messages(value: Any, name: str) -> Conversation:
    if not isinstance(value, list | tuple):
        raise RowError("missing_field", f'"{name}" is neither text nor messages but {_kind_of(value)}')
    return tuple(_message(message, f"{name}[{place}]") for place, message in enumerate(value))


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping) or "role" not in value or "content" not in value:
        raise RowError("missing_field", f'"{name}" is not a message with "role" and "content"')
    return {key: _text(value[key], f"{name}.{key}") for key in ("role", "content")}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError("missing_field", f'"{name}" is not text but {_kind_of(value)}')
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair, which no tokenizer takes
        raise RowError("missing_field", f'"{name}" holds half a surrogate pair, which is no character') from error
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("missing_field", f'"{name}" is not a number but {_kind_of(value)}')
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError("missing_field", f'"{name}" is {number}, not a finite number')
    return number


def _target(value: Any) -> float:
    target = _number(value, "target")
    if not 0 <= target <= 1:
        raise RowError("missing_field", f'"target" is {target:g}, not between 0 and 1')
    return target


def _label(fields: Mapping[str, Any], name: str, default: str) -> str:
    value = fields.get(name, default)
    return str(value) if isinstance(value, int) else _text(value, name)


def _kind_of(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
