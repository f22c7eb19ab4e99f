"""Conversations as text, through the tokenizer's chat template or, without one, as plain turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from aplot_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aplot_lightning.data.comparisons import Message

PLAIN_NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
MARK = "\ue000"  # a character for private use, in the place of a response


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: all of it.
        start: the character of `text` where the last message's text begins.
        breaks: where `text` is taken apart before it is tokenised, in ascending order: inside each special token that a
            message's own text spells, so that it is read as text.
    """

    text: str
    start: int
    breaks: tuple[int, ...] = ()


class Renderer:
    """Writes conversations as the text that is tokenised.

    With a chat template the template decides every character; without one conversations are written as
    ``Human: ...`` and ``Assistant: ...`` turns with an empty line between them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.plain = tokenizer.chat_template is None
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        special = sorted((token for token in special if len(token) > 1), key=len, reverse=True)
        self._beginnings = sorted({token[:2] for token in special})
        self._first_character = re.compile(f"(?={'|'.join(map(re.escape, special)) or '(?!)'})(.)", re.DOTALL)

    def text(self, conversation: Sequence[Message]) -> str:
        """The text of one conversation. Raises UserError where the chat template refuses it."""
        if self.plain:
            turns = (f"{PLAIN_NAMES.get(m['role'], m['role'].title())}: {m['content']}" for m in conversation)
            return "\n\n".join(turns)
        return self._apply([conversation])[0]

    def rendered(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """All conversations with the places where their last messages begin; UserError where the template refuses."""
        if self.plain:
            texts = [self.text(conversation) for conversation in conversations]
            return [
                Rendered(text, len(text) - len(conversation[-1]["content"]))
                for text, conversation in zip(texts, conversations, strict=True)
            ]
        marks = [self._mark(conversation) for conversation in conversations]
        texts = self._apply([mark[0] if mark else each for mark, each in zip(marks, conversations, strict=True)])
        asked = self._prompts(conversations)
        result = []
        for marked, mark, prompt in zip(texts, marks, asked, strict=True):
            pieces = marked.split(mark[1]) if mark else [marked]
            text = "".join(pieces)
            breaks = tuple(accumulate(map(len, pieces[:-1])))
            result.append(Rendered(text, _shared(text, prompt), breaks))
        return result

    def _apply(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        if not conversations:
            return []
        try:  # all at once: half of what a call costs does not depend on the conversation
            texts: Any = self.tokenizer.apply_chat_template([list(each) for each in conversations], tokenize=False)
        except Exception as error:  # templates raise jinja2's TemplateError, or TypeError on odd messages
            if len(conversations) > 1:
                return [self._apply([conversation])[0] for conversation in conversations]  # finds the one it refuses
            roles = ", ".join(message["role"] for message in conversations[0])
            raise UserError(f"the chat template refuses a conversation with the roles {roles}: {error}") from error
        return texts

    def _prompts(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """The text before the last message's own text of each conversation, the same prompt only once."""
        keys = [(*map(id, conversation[:-1]), conversation[-1]["role"]) for conversation in conversations]
        distinct = dict(zip(keys, conversations, strict=True))
        texts = self._apply([[*each[:-1], {**each[-1], "content": MARK}] for each in distinct.values()])
        prompts = {key: text.rpartition(MARK)[0] or text for key, text in zip(distinct, texts, strict=True)}
        return [prompts[key] for key in keys]

    def _mark(self, conversation: Sequence[Message]) -> tuple[list[Message], str] | None:
        """The conversation with a mark inside each special token that its texts spell, and the mark; None without."""
        texts = "\n".join(text for message in conversation for text in message.values())
        if not any(beginning in texts for beginning in self._beginnings):
            return None  # nearly always, and much cheaper than the expression
        if not self._first_character.search(texts):
            return None
        mark = next(chr(place) for place in range(0xE000, 0xF900) if chr(place) not in texts)
        marked = [
            {key: self._first_character.sub(rf"\1{mark}", text) for key, text in message.items()}
            for message in conversation
        ]
        return marked, mark


def _shared(text: str, other: str) -> int:
    """Characters that two texts share at their beginning."""
    if text.startswith(other):
        return len(other)
    differing = (place for place, (a, b) in enumerate(zip(text, other, strict=False)) if a != b)
    return next(differing, min(len(text), len(other)))
