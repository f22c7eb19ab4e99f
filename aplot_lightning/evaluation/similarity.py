"""How alike two texts are, without any model, so that the hardest third of a set is the same for every run."""

from __future__ import annotations

import re
from collections import Counter

_TOKEN = re.compile(r"\w+|[^\w\s]")


def token_f1(a: str, b: str) -> float:
    """F1 of the two multisets of lower-cased tokens: 2 |A ∩ B| / (|A| + |B|), in [0, 1].

    A token is a run of word characters or a single punctuation mark. Two texts without any token are alike (1.0); a
    text without tokens and one with some share nothing (0.0).
    """
    first, second = _tokens(a), _tokens(b)
    total = first.total() + second.total()
    if total == 0:
        return 1.0
    return 2 * (first & second).total() / total


def _tokens(text: str) -> Counter[str]:
    return Counter(_TOKEN.findall(text.lower()))
