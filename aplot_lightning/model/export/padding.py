"""A pad token for programs that find the scored token by its id."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEW_TOKEN = "<|pad|>"
PADDING = re.compile(r"(?<![a-z])pad(ding)?(?![a-z])", re.IGNORECASE)
SPARE = re.compile(r"[<\[]\W*(reserved|unused|placeholder|dummy|extra_id)\w*\W*[>\]]", re.IGNORECASE)


@dataclass(frozen=True)
class PadToken:
    """The pad token of an exported model.

    Attributes:
        token: its text.
        id: its place in the vocabulary.
        origin: ``own`` (the tokenizer's), ``reserved`` (a token of the vocabulary that nothing uses), ``row`` (a new
            token in a row of the embedding table that had none) or ``grown`` (a new token with a new row).
    """

    token: str
    id: int
    origin: Literal["own", "reserved", "row", "grown"]


def choose_pad_token(tokenizer: PreTrainedTokenizerFast, scored: Set[int], rows: int) -> PadToken:
    """A pad token that no conversation ends with.

    A decoder in Transformers scores the right-most token that is not the pad token, so a conversation that ends with it
    would be scored one token early. The tokenizer's own pad token stays where that cannot happen.

    Args:
        tokenizer: with a pad token and a chat template; it is not changed.
        scored: ids of the tokens that conversations of several kinds end with; several where the template does not end
            with a token of its own.
        rows: of the embedding table.
    """
    own = tokenizer.pad_token_id
    by_chance = len(scored) > 1 and own in {tokenizer.eos_token_id, tokenizer.unk_token_id}
    if own not in scored and not by_chance and own < rows:
        return PadToken(tokenizer.pad_token, own, "own")
    reserved = _reserved(tokenizer, scored, rows)
    if reserved is not None:
        return reserved
    new = max(tokenizer.get_vocab().values()) + 1
    return PadToken(NEW_TOKEN, new, "row" if new < rows else "grown")


def _reserved(tokenizer: PreTrainedTokenizerFast, scored: Set[int], rows: int) -> PadToken | None:
    """A token named as padding, else the first one named as reserved, that neither template nor tokenizer uses."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template)
    found = [
        (0 if PADDING.search(token) else 1, place, token)
        for token, place in tokenizer.get_vocab().items()
        if place < rows
        and place not in scored
        and token not in used
        and token not in template
        and (SPARE.fullmatch(token) or (token in added and PADDING.search(token)))
    ]
    if not found:
        return None
    _, place, token = min(found)
    return PadToken(token, place, "reserved")
