"""A chat template that writes what this package writes for a tokenizer without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.encoding.rendering import PLAIN_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aplot_lightning.data.comparisons import Conversation

SAMPLE = ({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"})


def plain_template(tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]) -> str | None:
    """The template for ``Human: ... Assistant: ...`` turns between the tokenizer's special tokens.

    It writes the special tokens too, so that the text alone gives the right tokens, without any that a tokenizer adds.

    Args:
        tokenizer: without a chat template; it is not changed.
        conversations: on which the template has to give the very tokens of `ConversationEncoder`.

    Returns:
        The template, or None where text cannot say these tokens (special tokens that the tokenizer does not read).
    """
    before, after = _special_tokens(tokenizer)
    for space in ("", " "):  # some tokenizers put a space before the first word only, which a token in front takes away
        template = _write(before + space if before else "", after)
        if same_tokens(tokenizer, template, conversations):
            return template
    return None


def same_tokens(tokenizer: PreTrainedTokenizerFast, template: str, conversations: Sequence[Conversation]) -> bool:
    """Whether the text of `template` alone gives the tokens that are trained with."""
    expected = ConversationEncoder(tokenizer).encode_conversations(conversations)
    texts = [
        tokenizer.apply_chat_template(list(conversation), chat_template=template, tokenize=False)
        for conversation in conversations
    ]
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return all(row.tolist() == tokens for row, tokens in zip(expected, found, strict=True))


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """The special tokens before and after a conversation, as text."""
    encoder = ConversationEncoder(tokenizer)
    row = encoder.encode_conversations([SAMPLE])[0].tolist()
    bare = tokenizer(encoder.render(SAMPLE), add_special_tokens=False, verbose=False)["input_ids"]
    start = next(place for place in range(len(row)) if row[place : place + len(bare)] == bare)
    around = row[:start], row[start + len(bare) :]
    before, after = ("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in around)
    return before, after


def _write(before: str, after: str) -> str:
    names = ", ".join(f"{_quoted(role)}: {_quoted(name)}" for role, name in PLAIN_NAMES.items())
    return (
        f"{{% set names = {{{names}}} %}}{{{{ {_quoted(before)} }}}}"
        "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
        "{{ names.get(message['role'], message['role'].title()) + ': ' + message['content'] }}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '\\n\\n{PLAIN_NAMES['assistant']}: ' }}}}{{% else %}}"
        f"{{{{ {_quoted(after)} }}}}{{% endif %}}"
    )


def _quoted(text: str) -> str:
    """A string of Jinja."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
