"""The tokens of comparisons as arrays, all of them aligned with the comparisons that were read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aplot_lightning.data.comparisons import Comparison
from aplot_lightning.data.encoded import TokenRows
from aplot_lightning.data.encoding import Encoding

REFUSALS = ("", "too_long", "identical_after_truncation")  # by their numbers in `verdict`


def tokens_of(comparisons: Sequence[Comparison], encodings: Sequence[Encoding]) -> dict[str, np.ndarray]:
    """What `TokenRows.arrays` gives, with the encoder's verdicts on C comparisons with P pairs.

    ========================  ===========  ================================================
    verdict                   (C,) int8    a place in `REFUSALS`; 0 for a usable comparison
    messages                  (M,) uint8   UTF-8 of the refusals behind each other
    message_lengths           (C,) int32   bytes of each comparison's own
    cut_prompt                (C,) bool
    cut_chosen, cut_rejected  (P,) bool    the response's end was cut
    ========================  ===========  ================================================
    """
    rows = TokenRows()
    for comparison, encoding in zip(comparisons, encodings, strict=True):
        rows.add(comparison, encoding.rows, encoding.starts)
    refusals = [encoding.refusal or ("", "") for encoding in encodings]
    messages = [message.encode("utf-8", "replace") for _, message in refusals]
    cut = [
        [side in encoding.cut_responses for side in pair]
        for comparison, encoding in zip(comparisons, encodings, strict=True)
        for pair in comparison.pairs
    ]
    cut_pairs = np.asarray(cut, dtype=bool).reshape(-1, 2)
    return {
        **rows.arrays(),
        "verdict": np.asarray([REFUSALS.index(kind) for kind, _ in refusals], dtype=np.int8),
        "messages": np.frombuffer(b"".join(messages), dtype=np.uint8),
        "message_lengths": np.asarray([len(message) for message in messages], dtype=np.int32),
        "cut_prompt": np.asarray([encoding.cut_prompt for encoding in encodings], dtype=bool),
        "cut_chosen": np.ascontiguousarray(cut_pairs[:, 0]),
        "cut_rejected": np.ascontiguousarray(cut_pairs[:, 1]),
    }
