"""From comparisons to tokens: the chat template, truncation that keeps the answers, and the shared prefix.

Everything is cut as text and rendered again through the template, so that a shortened conversation is still one that
the template would write and its last token, the one that is scored, is always the template's own last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aplot_lightning.data.comparisons import prompt_key
from aplot_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aplot_lightning.data.comparisons import Comparison, Message
    from aplot_lightning.data.report import SourceLedger

CHUNK = 1024  # comparisons rendered and tokenised together
PLAIN_NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
COLUMNS = ("margin", "target", "chosen_score", "rejected_score")


@dataclass
class EncodedComparisons:
    """C comparisons as flat arrays: tokens, and where each comparison's segments and pairs begin.

    A comparison's segments are its prefix (the tokens that all its conversations share) and one suffix a response, in
    that order; no suffix is empty.

    Attributes:
        tokens: (T,) int32, all segments behind each other.
        segments: (S + 1,) int64, where each segment begins in `tokens`.
        first_segment: (C + 1,) int64, each comparison's first segment (its prefix).
        winners, losers: (P,) int32, each pair's responses, counted within its comparison.
        first_pair: (C + 1,) int64, each comparison's first pair.
        columns: name -> (P,) float32: ``weight`` (the pairs of one comparison share a weight of 1), and of
            the data's own columns those with at least one value, NaN for the other pairs.
        lengths: (C,) int32, tokens of the longest conversation.
        kept: (C,) int64, each comparison's place in the list that was encoded.
    """

    tokens: np.ndarray
    segments: np.ndarray
    first_segment: np.ndarray
    winners: np.ndarray
    losers: np.ndarray
    first_pair: np.ndarray
    columns: dict[str, np.ndarray]
    lengths: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def pairs(self) -> int:
        return len(self.winners)

    def rows(self, comparison: int) -> list[np.ndarray]:
        """The whole conversations of one comparison, one int32 array a response."""
        start, stop = self.first_segment[comparison], self.first_segment[comparison + 1]
        prefix, *suffixes = (self.tokens[self.segments[i] : self.segments[i + 1]] for i in range(start, stop))
        return [np.concatenate([prefix, suffix]) for suffix in suffixes]


class ConversationEncoder:
    """Renders and tokenises conversations for one tokenizer.

    With a chat template the template decides every token; without one, conversations are written as
    ``Human: ... Assistant: ...`` turns between the tokenizer's own special tokens, with its end-of-text token (if it
    has one) as the scored token.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        max_length: tokens of a prompt with one response; None for no limit. A longer conversation loses prompt
            messages from its beginning, then the beginning of the last prompt message, and the end of its response
            only when that alone is too long.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def render(self, conversation: Sequence[Message]) -> str:
        """The text of a conversation. Raises UserError where the chat template refuses its roles."""
        if self.tokenizer.chat_template is None:
            turns = (f"{PLAIN_NAMES.get(m['role'], m['role'].title())}: {m['content']}" for m in conversation)
            return "\n\n".join(turns)
        try:
            text = self.tokenizer.apply_chat_template(list(conversation), tokenize=False)
        except Exception as error:  # templates raise jinja2's TemplateError, or TypeError on odd messages
            roles = ", ".join(message["role"] for message in conversation)
            raise UserError(f"the chat template refuses a conversation with the roles {roles}: {error}") from error
        assert isinstance(text, str)
        return text

    def encode_conversations(self, conversations: Sequence[Sequence[Message]]) -> list[np.ndarray]:
        """Token ids of each conversation, int32, at most `max_length` long, the scored token last.

        Raises UserError where not even an empty response fits.
        """
        rows = self._tokenise([self.render(conversation) for conversation in conversations])
        for place, row in enumerate(rows):
            if self._too_long(row):
                shortened = self._shorten(conversations[place][:-1], [conversations[place][-1:]])
                if shortened is None:
                    raise UserError(
                        f"max_length {self.max_length} leaves no room for a response: the template alone takes more"
                    )
                rows[place] = shortened[0]
        return rows

    def encode(
        self, comparisons: Sequence[Comparison], ledger: SourceLedger | None = None, leaks: Set[bytes] = frozenset()
    ) -> EncodedComparisons:
        """Encodes comparisons; those that cannot be used are refused in `ledger` with the reason and left out.

        Args:
            comparisons: C of them.
            ledger: the account of their source.
            leaks: prompt keys of the evaluation sets, which these comparisons may not share.
        """
        builder = _Builder()
        for start in range(0, len(comparisons), CHUNK):
            chunk = comparisons[start : start + CHUNK]
            for offset, rows in enumerate(self._encode_chunk(chunk)):
                comparison = chunk[offset]
                refusal = self._refusal(comparison, rows, leaks)
                if refusal is None:
                    assert rows is not None
                    builder.add(start + offset, comparison, rows)
                elif ledger is not None:
                    ledger.refuse(refusal[0], comparison.where, refusal[1])
        return builder.build()

    def _encode_chunk(self, comparisons: Sequence[Comparison]) -> Iterator[list[np.ndarray] | None]:
        texts: list[str] = []
        for comparison in comparisons:
            try:
                texts += [self.render(comparison.prompt + response) for response in comparison.responses]
            except UserError as error:
                raise UserError(f"{comparison.where}: {error}") from error
        tokenised = iter(self._tokenise(texts))
        for comparison in comparisons:
            rows = [next(tokenised) for _ in comparison.responses]
            if any(self._too_long(row) for row in rows):
                yield self._shorten(comparison.prompt, comparison.responses)
            else:
                yield rows

    def _refusal(
        self, comparison: Comparison, rows: list[np.ndarray] | None, leaks: Set[bytes]
    ) -> tuple[str, str] | None:
        if rows is None:
            return "too_long", f"not even an empty response fits into max_length {self.max_length}"
        if any(np.array_equal(rows[winner], rows[loser]) for winner, loser in comparison.pairs):
            return "identical_after_truncation", "chosen and rejected are the same tokens"
        if comparison.prompt and leaks and prompt_key(comparison) in leaks:
            return "leak", "its prompt is also in an evaluation set"
        return None

    def _tokenise(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        plain = self.tokenizer.chat_template is None
        ids = self.tokenizer(texts, add_special_tokens=plain, return_attention_mask=False, verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        if plain and end is not None and self.tokenizer.sep_token_id is None:
            ids = [row if row and row[-1] == end else [*row, end] for row in ids]
        return [np.asarray(row, dtype=np.int32) for row in ids]

    def _too_long(self, row: np.ndarray) -> bool:
        return self.max_length is not None and len(row) > self.max_length

    def _shorten(self, prompt: Sequence[Message], responses: Sequence[Sequence[Message]]) -> list[np.ndarray] | None:
        """Cuts prompt messages, then the last one's beginning, then the responses' ends; None where nothing helps."""
        prompt = list(prompt)
        rows = self._rows(prompt, responses)
        while self._excess(rows) and sum(message["role"] != "system" for message in prompt) > 1:
            prompt.remove(next(message for message in prompt if message["role"] != "system"))
            rows = self._rows(prompt, responses)
        while self._excess(rows) and prompt and prompt[-1]["content"]:
            content = self._cut(prompt[-1]["content"], self._excess(rows), keep="end")
            prompt = [*prompt[:-1], {**prompt[-1], "content": content}]
            rows = self._rows(prompt, responses)
        shortened = [list(response) for response in responses]
        for place, response in enumerate(shortened):
            while self._excess(rows[place : place + 1]) and response[-1]["content"]:
                content = self._cut(response[-1]["content"], self._excess(rows[place : place + 1]), keep="beginning")
                response[-1] = {**response[-1], "content": content}
                rows[place] = self._rows(prompt, [response])[0]
        return None if self._excess(rows) else rows

    def _rows(self, prompt: Sequence[Message], responses: Sequence[Sequence[Message]]) -> list[np.ndarray]:
        return self._tokenise([self.render([*prompt, *response]) for response in responses])

    def _excess(self, rows: Sequence[np.ndarray]) -> int:
        assert self.max_length is not None
        return max(0, max(len(row) for row in rows) - self.max_length)

    def _cut(self, content: str, tokens: int, keep: str) -> str:
        """`content` without `tokens` of its tokens (at least one character less, so that cutting ends)."""
        spans = self.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        if tokens >= len(spans):
            return ""
        if keep == "end":
            return content[max(1, spans[tokens][0]) :]
        return content[: min(len(content) - 1, spans[-tokens][0])]


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """Tokens that all rows share at their beginning, at most the shortest row's length less one."""
    shortest = min(len(row) for row in rows)
    first = rows[0][:shortest]
    same = np.ones(shortest, dtype=bool)
    for row in rows[1:]:
        same &= first == row[:shortest]
    prefix = shortest if same.all() else int(np.argmin(same))
    return min(prefix, shortest - 1)


class _Builder:
    """Collects encoded comparisons and lays them out as flat arrays."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.segment_lengths: list[int] = []
        self.segment_counts: list[int] = []
        self.winners: list[int] = []
        self.losers: list[int] = []
        self.pair_counts: list[int] = []
        self.columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self.lengths: list[int] = []
        self.kept: list[int] = []

    def add(self, place: int, comparison: Comparison, rows: list[np.ndarray]) -> None:
        prefix = common_prefix(rows)
        segments = [rows[0][:prefix], *(row[prefix:] for row in rows)]
        self.tokens += segments
        self.segment_lengths += [len(segment) for segment in segments]
        self.segment_counts.append(len(segments))
        self.lengths.append(max(len(row) for row in rows))
        self.kept.append(place)
        self.pair_counts.append(len(comparison.pairs))
        for winner, loser in comparison.pairs:
            self.winners.append(winner)
            self.losers.append(loser)
            self._add_columns(comparison, winner, loser)

    def _add_columns(self, comparison: Comparison, winner: int, loser: int) -> None:
        scores = comparison.scores
        values = {
            "margin": comparison.margin,
            "target": comparison.target,
            "chosen_score": scores[winner] if scores else None,
            "rejected_score": scores[loser] if scores else None,
        }
        for name, value in values.items():
            self.columns[name].append(float("nan") if value is None else value)

    def build(self) -> EncodedComparisons:
        return EncodedComparisons(
            tokens=np.concatenate(self.tokens) if self.tokens else np.zeros(0, dtype=np.int32),
            segments=_starts(self.segment_lengths),
            first_segment=_starts(self.segment_counts),
            winners=np.asarray(self.winners, dtype=np.int32),
            losers=np.asarray(self.losers, dtype=np.int32),
            first_pair=_starts(self.pair_counts),
            columns=self._filled_columns(),
            lengths=np.asarray(self.lengths, dtype=np.int32),
            kept=np.asarray(self.kept, dtype=np.int64),
        )

    def _filled_columns(self) -> dict[str, np.ndarray]:
        columns = {name: np.asarray(values, dtype=np.float32) for name, values in self.columns.items()}
        if not np.isnan(columns["target"]).all():
            columns["target"] = np.nan_to_num(columns["target"], nan=1.0)  # a pair without a soft target has a hard one
        counts = np.asarray(self.pair_counts, dtype=np.int64)
        weight = np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32)
        return {"weight": weight, **{name: values for name, values in columns.items() if not np.isnan(values).all()}}


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)
