"""The encoder of one tokenizer: comparisons in, rows of tokens or a reason against them out."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from aplot_lightning.data.comparisons import prompt_key
from aplot_lightning.data.encoded import Builder, EncodedComparisons
from aplot_lightning.data.encoding.rendering import Renderer
from aplot_lightning.data.encoding.tokens import Tokeniser
from aplot_lightning.data.encoding.truncation import POLICIES, Encoded, Shortened, Truncation
from aplot_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aplot_lightning.data.comparisons import Comparison, Message
    from aplot_lightning.data.ledger import SourceLedger

CHUNK = 1024  # comparisons rendered and tokenised together
FORMAT = 2  # raised when this package writes, cuts or tokenises conversations differently


@dataclass(frozen=True, slots=True)
class Encoding:
    """The tokens of one comparison, or why there are none.

    Attributes:
        rows: one (length,) int32 array a response, the scored token last; [] where the comparison is refused.
        starts: where each row's response begins, at most its length less one; [] where the comparison is refused.
        refusal: (kind, message) with the kind ``too_long`` or ``identical_after_truncation``; None where it is used.
        cut_prompt: the prompt was cut, or that of one side where the sides have prompts of their own.
        cut_responses: the places of the responses whose text was cut, in ascending order.
    """

    rows: list[np.ndarray]
    starts: list[int]
    refusal: tuple[str, str] | None = None
    cut_prompt: bool = False
    cut_responses: tuple[int, ...] = ()


class ConversationEncoder:
    """Renders and tokenises conversations for one tokenizer; may be pickled.

    With a chat template the template decides every token; without one, conversations are written as
    ``Human: ... Assistant: ...`` turns between the tokenizer's own special tokens, with its end-of-text token (if it
    has one) as the scored token. A special token that a message's own text spells, ``<|im_end|>`` say, is encoded as
    the text it is: no response can end its own turn.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        max_length: tokens of a prompt with one response; None for no limit.
        truncation: what a longer conversation loses: ``left`` (its prompt's beginning, and the end of a response only
            where that alone is too long), ``right`` (the responses' ends, never the prompt) or ``drop`` (nothing: the
            comparison is refused). See `truncation`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, max_length: int | None = None, truncation: str = "left"
    ) -> None:
        if truncation not in POLICIES:
            raise UserError(f"truncation: {truncation!r} is none of {', '.join(POLICIES)}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        self._fingerprint: str | None = None  # a large vocabulary takes 0.3 s
        self._renderer = Renderer(tokenizer)
        self._tokeniser = Tokeniser(tokenizer, self._renderer.plain)

    def fingerprint(self) -> str:
        """Hex digest of everything that decides tokens, the same in every process; found once for each encoder.

        The tokenizer, its special tokens and chat template, the limit and the policy, how this package writes
        conversations, and the versions of the libraries that render and tokenise them.
        """
        if self._fingerprint is None:
            self._fingerprint = self._digest()
        return self._fingerprint

    def _digest(self) -> str:
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        parts = {
            "backend": backend | {"truncation": None, "padding": None},  # every call sets these anew
            "template": self.tokenizer.chat_template,
            "special": {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            "split": self.tokenizer.split_special_tokens,
            "max_length": self.max_length,
            "truncation": self.truncation,
            "format": FORMAT,
            "versions": [version(name) for name in ("transformers", "tokenizers", "jinja2")],
        }
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def render(self, conversation: Sequence[Message]) -> str:
        """The text of a conversation. Raises UserError where the chat template refuses its roles."""
        return self._renderer.text(conversation)

    def encode_conversations(self, conversations: Sequence[Sequence[Message]]) -> list[np.ndarray]:
        """Token ids of each conversation, int32, at most `max_length` long, the scored token last.

        Raises UserError where a conversation is too long and its policy or its response leaves nothing to cut.
        """
        rows, starts = self._encode(conversations)
        for place, row in enumerate(rows):
            if self._too_long([row]):
                prompt, response = tuple(conversations[place][:-1]), tuple(conversations[place][-1:])
                shortened = self._shorten(prompt, [response], ([row], [starts[place]]))
                if shortened is None:
                    raise UserError(self._refusal([row]))
                rows[place] = shortened.rows[0]
        return rows

    def encode_chunk(self, comparisons: Sequence[Comparison]) -> list[Encoding]:
        """One Encoding a comparison. Raises UserError with the row's place where the chat template refuses it."""
        conversations = [each.prompt + response for each in comparisons for response in each.responses]
        try:
            rows, starts = self._encode(conversations)
        except UserError:
            for comparison in comparisons:
                self._check(comparison)
            raise
        encodings, first = [], 0
        for comparison in comparisons:
            last = first + len(comparison.responses)
            encodings.append(self._encoding(comparison, (rows[first:last], starts[first:last])))
            first = last
        return encodings

    def encode(
        self, comparisons: Sequence[Comparison], ledger: SourceLedger | None = None, leaks: Set[bytes] = frozenset()
    ) -> EncodedComparisons:
        """Encodes comparisons; those that cannot be used are refused in `ledger` with the reason and left out.

        Args:
            comparisons: C of them.
            ledger: the account of their source.
            leaks: prompt keys of the evaluation sets, which these comparisons may not share.
        """
        builder = Builder()
        for start in range(0, len(comparisons), CHUNK):
            chunk = comparisons[start : start + CHUNK]
            for offset, encoding in enumerate(self.encode_chunk(chunk)):
                comparison, refusal = chunk[offset], encoding.refusal
                if refusal is None and comparison.prompt and leaks and prompt_key(comparison) in leaks:
                    refusal = ("leak", "its prompt is also in an evaluation set")
                if refusal is None:
                    builder.add(start + offset, comparison, encoding.rows, encoding.starts)
                elif ledger is not None:
                    ledger.refuse(refusal[0], comparison.where, refusal[1])
        return builder.build()

    def _encode(self, conversations: Sequence[Sequence[Message]]) -> Encoded:
        return self._tokeniser.rows(self._renderer.rendered(conversations))

    def _encoding(self, comparison: Comparison, whole: Encoded) -> Encoding:
        shortened: Shortened | None = Shortened(*whole, cut_prompt=False, cut_responses=())
        if self._too_long(whole[0]):
            shortened = self._shorten(comparison.prompt, comparison.responses, whole)
        if shortened is None:
            return Encoding([], [], ("too_long", self._refusal(whole[0])))
        rows = shortened.rows
        if any(np.array_equal(rows[winner], rows[loser]) for winner, loser in comparison.pairs):
            return Encoding([], [], ("identical_after_truncation", "chosen and rejected are the same tokens"))
        return Encoding(rows, shortened.starts, None, shortened.cut_prompt, shortened.cut_responses)

    def _shorten(
        self, prompt: tuple[Message, ...], responses: Sequence[tuple[Message, ...]], whole: Encoded
    ) -> Shortened | None:
        assert self.max_length is not None
        truncation = Truncation(self.max_length, self.truncation, self._tokeniser, self._encode)
        return truncation.shorten(prompt, responses, whole)

    def _too_long(self, rows: Sequence[np.ndarray]) -> bool:
        return self.max_length is not None and any(len(row) > self.max_length for row in rows)

    def _refusal(self, rows: Sequence[np.ndarray]) -> str:
        if self.truncation == "drop":
            return f"{max(len(row) for row in rows)} tokens, more than max_length {self.max_length}"
        around = "the template" if self.truncation == "left" else "its prompt"
        return f"max_length {self.max_length} leaves no room for a response: {around} alone takes too much"

    def _check(self, comparison: Comparison) -> None:
        try:
            self._renderer.rendered([comparison.prompt + response for response in comparison.responses])
        except UserError as error:
            raise UserError(f"{comparison.where}: {error}") from error
