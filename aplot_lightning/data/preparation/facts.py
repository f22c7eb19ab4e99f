"""What is known of comparisons without a tokenizer, as arrays: for splits, conflicts, leaks, and what metrics need."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from aplot_lightning.data.comparisons import (
    Comparison,
    digest,
    first_user_turn,
    normalised_text,
    prompt_key,
    response_text,
)
from aplot_lightning.data.contamination import signatures
from aplot_lightning.data.encoded import bounds, pair_arrays, stretches
from aplot_lightning.evaluation.similarity import token_f1


def facts_of(comparisons: Sequence[Comparison]) -> dict[str, np.ndarray]:
    """Facts of C comparisons with P pairs.

    ==================  =============  =================================================================
    response_counts     (C,) int32
    pair_counts         (C,) int32
    place               (C,) float64   of the first user turn, in [0, 1): the split goes by it
    has_prompt          (C,) bool      the sides share a prompt
    prompt              (C, 2) uint64  `prompt_key`
    signature           (C, k)         MinHash of the prompt
    listed              (C, 2) uint64  digest of all pairs as they are listed, for duplicates
    order_counts        (C,) int32     orders that the comparison states
    preferred           (O, 2) uint64  digest of each order stated
    opposite            (O, 2) uint64  and of the opposite order
    winners, losers     (P,) int32     places among the comparison's responses
    margin, target,     (P,) float32   NaN where there is none
    chosen_score,
    rejected_score
    chosen_characters,  (P,) int32
    rejected_characters
    similarity          (P,) float32   token F1 of the two texts
    ==================  =============  =================================================================
    """
    orders, listed = _all_orders(comparisons)
    stated = [order for own in orders for order in own]
    texts = [[response_text(c, place) for place in range(len(c.responses))] for c in comparisons]
    sides = [(own[winner], own[loser]) for c, own in zip(comparisons, texts, strict=True) for winner, loser in c.pairs]
    return {
        **pair_arrays(comparisons),
        "place": np.asarray([hash_share(first_user_turn(comparison)) for comparison in comparisons], dtype=np.float64),
        "has_prompt": np.asarray([bool(comparison.prompt) for comparison in comparisons], dtype=bool),
        "prompt": _digests([prompt_key(comparison) for comparison in comparisons]),
        "signature": signatures([_prompt_text(comparison) for comparison in comparisons]),
        "listed": _digests(listed),
        "order_counts": _counts(map(len, orders)),
        "preferred": _digests([preferred for preferred, _ in stated]),
        "opposite": _digests([opposite for _, opposite in stated]),
        "chosen_characters": _counts(len(chosen) for chosen, _ in sides),
        "rejected_characters": _counts(len(rejected) for _, rejected in sides),
        "similarity": np.asarray([token_f1(*both) for both in sides], dtype=np.float32),
    }


def hash_share(text: str) -> float:
    """A fixed place in [0, 1) for a first user turn, the same on every machine and for every seed."""
    state = hashlib.sha256(normalised_text(text).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(state[:7], "big") / 2**56


def held_out_columns(facts: Mapping[str, np.ndarray], places: np.ndarray) -> dict[str, np.ndarray]:
    """What an evaluation set knows of each pair (P,) of the comparisons at `places` (C,) int64.

    ``prompt`` (int64, the first bytes of the prompt's key), ``chosen_characters`` and ``rejected_characters`` (int64),
    and ``similarity`` (float32).
    """
    counts = facts["pair_counts"]
    pairs = stretches(bounds(counts), places)
    prompts = np.ascontiguousarray(facts["prompt"][places, 0]).view(np.int64)
    return {
        "prompt": np.repeat(prompts, counts[places]),
        **{name: facts[name][pairs].astype(np.int64) for name in ("chosen_characters", "rejected_characters")},
        "similarity": facts["similarity"][pairs],
    }


def _prompt_text(comparison: Comparison) -> str:
    return "\n".join(message["content"] for message in comparison.prompt)


def _all_orders(comparisons: Sequence[Comparison]) -> tuple[list[list[tuple[bytes, bytes]]], list[bytes]]:
    both = [orders_of(comparison) for comparison in comparisons]
    return [orders for orders, _ in both], [listed for _, listed in both]


def orders_of(comparison: Comparison) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """For each pair a digest of its order and one of the opposite order, and a digest of all pairs as they are listed.

    A target below one half prefers the response that is listed as rejected; one half prefers neither.
    """
    prompt, *responses = (
        digest(*(text for message in messages for text in message.values()))
        for messages in (comparison.prompt, *comparison.responses)
    )
    ordered = [
        (digest(prompt, responses[winner], responses[loser]), digest(prompt, responses[loser], responses[winner]))
        for winner, loser in comparison.pairs
    ]
    listed = ordered[0][0] if len(ordered) == 1 else digest(*sorted(order for order, _ in ordered))
    if comparison.target is None or comparison.target > 0.5:
        return ordered, listed
    return [] if comparison.target == 0.5 else [(opposite, order) for order, opposite in ordered], listed


def _counts(values: object) -> np.ndarray:
    return np.fromiter(values, dtype=np.int32)  # type: ignore[call-overload]


def _digests(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2)
