"""Rendered conversations as token ids; what several of them begin with is tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from aplot_lightning.data.encoding.rendering import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Tokeniser:
    """Tokenises rendered conversations exactly as the tokenizer does a whole text, special tokens in messages apart.

    A fast tokenizer cuts a text at special tokens before anything else, so the tokens before a special token do not
    depend on what follows it. That is why a conversation may be cut at the last special token before its response: the
    part before it is the same for all responses to a prompt.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        plain: conversations have no template: the tokenizer adds its own special tokens, and its end-of-text token (if
            it has one) is the last where it does not end with a separator.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, plain: bool) -> None:
        self.tokenizer = tokenizer
        self.plain = plain
        self._cuts = [] if plain or tokenizer.split_special_tokens else _clear_beginnings(tokenizer)

    def rows(self, conversations: Sequence[Rendered]) -> tuple[list[np.ndarray], list[int]]:
        """Token ids of each conversation, (length,) int32, and where its response begins, less than its length.

        The response begins at the token that holds its first character.
        """
        cuts = [token for token in self._cuts if conversations and token in conversations[0].text]
        parts = [self._parts(conversation, cuts) for conversation in conversations]
        others = list(dict.fromkeys(text for before, _, after in parts for text in (*before, *after)))
        ids = [encoding.ids for encoding in self._backend().encode_batch_fast(others, add_special_tokens=False)]
        known = dict(zip(others, (np.asarray(row, dtype=np.int32) for row in ids), strict=True))
        middles = self._backend().encode_batch([middle for _, middle, _ in parts], add_special_tokens=self.plain)
        rows, starts = [], []
        for each, (before, middle, after), encoding in zip(conversations, parts, middles, strict=True):
            row = np.asarray(self._complete(encoding.ids), dtype=np.int32)
            if before or after:
                row = np.concatenate([*(known[text] for text in before), row, *(known[text] for text in after)])
            first = _token_at(encoding, each.start - sum(map(len, before)), len(middle))
            starts.append(min(sum(len(known[text]) for text in before) + first, len(row) - 1))
            rows.append(row)
        return rows, starts

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text without anything around it; special tokens that it spells are text."""
        encodings = self._backend(as_text=True).encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in encodings]

    def without(self, text: str, tokens: int, keep: str) -> tuple[str, int]:
        """A text without `tokens` of its tokens or a few more, and about how many it lost.

        Args:
            text: any text but the empty one.
            tokens: at least 1.
            keep: what stays of it, its ``beginning`` or its ``end``. A character of several tokens is lost whole.
        """
        encoding = self._backend(as_text=True).encode(text, add_special_tokens=False)
        kept = len(encoding.ids) - tokens
        if kept <= 0:
            return "", len(encoding.ids)
        if keep == "end":
            return text[max(1, encoding.token_to_chars(tokens - 1)[1]) :], tokens
        last, lost = encoding.token_to_chars(kept - 1), encoding.token_to_chars(kept)
        return text[: min(last[1], lost[0], len(text) - 1)], tokens

    def _parts(self, conversation: Rendered, before: Sequence[str]) -> tuple[list[str], str, list[str]]:
        """The texts that are tokenised each for itself: before the response begins, around that place, and after.

        Without a special token in a message the text is cut once, at the last token of `before` before the response.
        """
        text, start = conversation.text, conversation.start
        cuts = list(conversation.breaks)
        if not cuts:
            cuts = [max((text.rfind(token, 0, start) for token in before), default=0)]
        bounds = [0, *(cut for cut in cuts if cut > 0), len(text)]
        pieces = [text[a:b] for a, b in pairwise(bounds)]
        middle = max(sum(bound <= start for bound in bounds[:-1]) - 1, 0)
        return pieces[:middle], pieces[middle], pieces[middle + 1 :]

    def _complete(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id if self.plain and self.tokenizer.sep_token_id is None else None
        return ids if end is None or (ids and ids[-1] == end) else [*ids, end]

    def _backend(self, as_text: bool = False) -> Any:
        """The tokenizer behind the tokenizer, without limits and padding, which a tokenizer.json may carry."""
        backend = self.tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        as_text = as_text or self.plain or self.tokenizer.split_special_tokens
        if backend.encode_special_tokens != as_text:
            backend.encode_special_tokens = as_text
        return backend


def _token_at(encoding: Any, character: int, length: int) -> int:
    """The token of a text that holds a character, else the first one after it; the number of tokens where none is."""
    token = encoding.char_to_token(character) if character < length else len(encoding.ids)
    if token is None:  # the character, a space as a rule, is in no token
        ends = (end for _, end in encoding.offsets)
        token = next((place for place, end in enumerate(ends) if end > character), len(encoding.ids))
    return token


def _clear_beginnings(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Special tokens that a text may be cut before: what stands before one does not change how it is read."""
    added = list(tokenizer.added_tokens_decoder.values())

    def clear(token: str) -> bool:
        """No added token may hold it anywhere but at its beginning, or end with what it begins with."""
        return not any(
            token in other.content[1:] or any(other.content.endswith(token[:size]) for size in range(1, len(token)))
            for other in added
        )

    return [
        token.content
        for token in added
        if token.special and not (token.lstrip or token.single_word or token.normalized) and clear(token.content)
    ]
