"""What a comparison is, and how a row of somebody's data becomes one or is refused with a reason.

A row's layout is told by its fields alone: ``prompt`` with ``chosen`` and ``rejected``, these two without a prompt
(whole conversations, HH-RLHF's transcripts among them), or many ``responses`` with ``scores`` or ``ranks``.
"""

from __future__ import annotations

from aplot_lightning.data.comparisons.comparison import (
    KINDS,
    Comparison,
    Conversation,
    Message,
    RowError,
    digest,
    first_user_turn,
    normalised_text,
    prompt_key,
    response_text,
)
from aplot_lightning.data.comparisons.conversations import conversation_of
from aplot_lightning.data.comparisons.parsing import FIELDS, parse_comparison

__all__ = [
    "FIELDS",
    "KINDS",
    "Comparison",
    "Conversation",
    "Message",
    "RowError",
    "conversation_of",
    "digest",
    "first_user_turn",
    "normalised_text",
    "parse_comparison",
    "prompt_key",
    "response_text",
]
