"""From comparisons to tokens: the chat template, truncation that keeps the answers, and where the responses begin.

Everything is cut as text and rendered again through the template, so that a shortened conversation is still one that
the template would write and its last token, the one that is scored, is always the template's own last token.
"""

from __future__ import annotations

from aplot_lightning.data.encoding.encoder import ConversationEncoder, Encoding
from aplot_lightning.data.encoding.truncation import POLICIES

__all__ = ["POLICIES", "ConversationEncoder", "Encoding"]
