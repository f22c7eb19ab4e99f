"""From comparisons to tokens: the chat template, truncation that keeps the answers, and the shared prefix.

Everything is cut as text and rendered again through the template, so that a shortened conversation is still one that
the template would write and its last token, the one that is scored, is always the template's own last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from aplot_lightning.data.comparisons import prompt_key
from aplot_lightning.data.encoded import Builder, EncodedComparisons, shared_beginning
from aplot_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aplot_lightning.data.comparisons import Comparison, Message
    from aplot_lightning.data.report import SourceLedger

CHUNK = 1024  # comparisons rendered and tokenised together
PLAIN_NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}


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
                rows[place] = shortened[0][0]
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
        builder = Builder()
        for start in range(0, len(comparisons), CHUNK):
            chunk = comparisons[start : start + CHUNK]
            for offset, encoded in enumerate(self._encode_chunk(chunk)):
                comparison = chunk[offset]
                refusal = self._refusal(comparison, encoded, leaks)
                if refusal is None:
                    assert encoded is not None
                    builder.add(start + offset, comparison, *encoded)
                elif ledger is not None:
                    ledger.refuse(refusal[0], comparison.where, refusal[1])
        return builder.build()

    def _encode_chunk(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[list[np.ndarray], list[int]] | None]:
        """The rows of each comparison and where their responses begin; None where nothing makes it short enough."""
        texts: list[str] = []
        for comparison in comparisons:
            try:
                texts += [self.render(comparison.prompt + response) for response in comparison.responses]
            except UserError as error:
                raise UserError(f"{comparison.where}: {error}") from error
        tokenised = iter(self._tokenise(texts))
        whole = [[next(tokenised) for _ in comparison.responses] for comparison in comparisons]
        fitting: list[tuple[list[np.ndarray], list[Sequence[Message]]] | None] = [
            self._shorten(comparison.prompt, comparison.responses)
            if any(self._too_long(row) for row in rows)
            else (rows, [comparison.prompt + response for response in comparison.responses])
            for comparison, rows in zip(comparisons, whole, strict=True)
        ]
        before = self._prompt_tokens([conversation for each in fitting if each for conversation in each[1]])
        for each in fitting:
            if each is None:
                yield None
            else:
                yield each[0], [min(shared_beginning([row, next(before)]), len(row) - 1) for row in each[0]]

    def _prompt_tokens(self, conversations: Sequence[Sequence[Message]]) -> Iterator[np.ndarray]:
        """Tokens of all but the last message of each conversation, up to where the last one's text begins."""
        texts = [self._render_prompt(conversation) for conversation in conversations]
        distinct = dict.fromkeys(texts)
        tokens = dict(zip(distinct, self._tokenise(list(distinct)), strict=True))
        return (tokens[text] for text in texts)

    def _render_prompt(self, conversation: Sequence[Message]) -> str:
        *prompt, response = conversation
        if self.tokenizer.chat_template is None:
            return self.render([*prompt, {**response, "content": ""}])
        try:
            text = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template may refuse a conversation that does not end with an answer, or an empty one
            return self.render([*prompt, {**response, "content": ""}])
        assert isinstance(text, str)
        return text

    def _refusal(
        self, comparison: Comparison, encoded: tuple[list[np.ndarray], list[int]] | None, leaks: Set[bytes]
    ) -> tuple[str, str] | None:
        if encoded is None:
            return "too_long", f"not even an empty response fits into max_length {self.max_length}"
        if any(np.array_equal(encoded[0][winner], encoded[0][loser]) for winner, loser in comparison.pairs):
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

    def _shorten(
        self, prompt: Sequence[Message], responses: Sequence[Sequence[Message]]
    ) -> tuple[list[np.ndarray], list[Sequence[Message]]] | None:
        """Rows and conversations cut to fit: prompt messages, then the last one's beginning, then the responses' ends.

        None where nothing helps. Conversations without a common prompt are cut each for itself.
        """
        if not prompt and any(len(response) > 1 for response in responses):
            parts = [self._shorten(response[:-1], [response[-1:]]) for response in responses]
            whole = [part for part in parts if part is not None]
            return ([p[0][0] for p in whole], [p[1][0] for p in whole]) if len(whole) == len(parts) else None
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
        return None if self._excess(rows) else (rows, [[*prompt, *response] for response in shortened])

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
