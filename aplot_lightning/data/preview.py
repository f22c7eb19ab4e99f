"""What the model reads of a pair: its kept tokens as text, special tokens and all, and which token is scored."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aplot_lightning.data.encoded import EncodedComparisons

SHOWN = 600  # characters of a text that are shown; of a longer one its beginning and its end
BEGIN, END = "⟦", "⟧"  # around the scored token
JOINED = {"Mn", "Me", "Mc", "Cf", "Sk"}  # marks, joiners and skin tones: what belongs to the character before it
JOINER = "\u200d"
FLAG_LETTERS = ("\U0001f1e6", "\U0001f1ff")


@dataclass(frozen=True)
class Side:
    """One conversation of a pair as the model reads it.

    Attributes:
        prompt: the text of the tokens before the response begins, long ones without their middle.
        response: the rest, with ⟦⟧ around the scored token; white space there is written out (``\\n``).
        tokens: of the whole conversation.
    """

    prompt: str
    response: str
    tokens: int


@dataclass(frozen=True)
class Preview:
    """One pair as the model reads it."""

    chosen: Side
    rejected: Side

    @property
    def one_prompt(self) -> bool:
        """Whether both responses answer the same text, as in all but pairs whose sides have prompts of their own."""
        return self.chosen.prompt == self.rejected.prompt


def previews(tokenizer: PreTrainedTokenizerFast, encoded: EncodedComparisons, most: int = 3) -> list[Preview]:
    """The first pairs of at most `most` comparisons, from the shortest over the median to the longest.

    The longest shows what truncation leaves, the shortest whether a template fits at all. The same comparisons give
    the same previews.

    Args:
        tokenizer: the one that encoded them.
        encoded: C comparisons; none gives no preview.
        most: pairs to show.
    """
    order = np.argsort(encoded.lengths, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(np.int64))
    found = []
    for comparison in order[places].tolist() if len(order) else []:
        pair = int(encoded.first_pair[comparison])
        rows, starts = encoded.rows(comparison), encoded.response_starts(comparison)
        sides = [int(encoded.winners[pair]), int(encoded.losers[pair])]
        found.append(Preview(*(_side(tokenizer, rows[side], int(starts[side])) for side in sides)))
    return found


def _side(tokenizer: PreTrainedTokenizerFast, row: np.ndarray, start: int) -> Side:
    """A conversation in three parts. All of it is decoded at once, as bytes of one character may lie in two tokens."""
    ids = row.tolist()
    whole = _decoded(tokenizer, ids)
    before, until_scored = (_shared(whole, _decoded(tokenizer, ids[:to])) for to in (start, -1))
    before = min(before, until_scored)
    scored = whole[until_scored:] or str(tokenizer.convert_ids_to_tokens(ids[-1]))
    if scored.isspace():  # the line break at the end of ChatML and its like
        scored = scored.encode("unicode_escape").decode()
    response = shortened(whole[before:until_scored])
    return Side(shortened(whole[:before]), f"{response}{BEGIN}{scored}{END}", len(ids))


def _shared(text: str, other: str) -> int:
    """Characters that two texts share at their beginning."""
    differing = (place for place, (mine, its) in enumerate(zip(text, other, strict=False)) if mine != its)
    return next(differing, min(len(text), len(other)))


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def shortened(text: str, shown: int = SHOWN) -> str:
    """`text`, or its beginning and end with what was left out between them counted; no character is cut in two."""
    if len(text) <= shown:
        return text
    first, last = _boundary(text, shown // 2), _boundary(text, len(text) - shown // 2)
    return f"{text[:first]} … [{last - first:,} characters] … {text[last:]}"


def _boundary(text: str, place: int) -> int:
    """The first place from `place` on where a reader sees a character begin: an emoji may be several code points."""
    while place < len(text) and _joined(text[place - 1], text[place]):
        place += 1
    return place


def _joined(before: str, after: str) -> bool:
    flags = all(FLAG_LETTERS[0] <= letter <= FLAG_LETTERS[1] for letter in (before, after))
    return flags or before == JOINER or unicodedata.category(after) in JOINED


def harmless(text: str) -> str:
    """`text` with control characters written out (``\\x1b``): data must not steer a terminal or turn its lines round.

    Line breaks and tabs stay; joiners of emoji stay, controls of writing direction do not.
    """
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]", _written_out, text
    )


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
