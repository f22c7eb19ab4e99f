"""MT-Bench's human judgements (lmsys/mt_bench_human_judgments: one row a vote)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.suites.layout import Layout, Ours, Raw, text

TURNS = {1: "first turn", 2: "second turn"}


def _fits(row: Raw) -> bool:
    return {"winner", "conversation_a", "conversation_b"} <= row.keys()


def _read(row: Raw, places: Sequence[str]) -> Ours | None:
    """A vote between two conversations, cut after the turn that was judged; None for a tie."""
    winner, turn = text(row, "winner"), row.get("turn")
    if winner.startswith("tie"):  # also "tie (inconsistent)" of the split gpt4_pair
        return None
    if winner not in ("model_a", "model_b"):
        raise RowError("missing_field", f'"winner" is {winner[:30]!r}: model_a, model_b or tie is meant')
    if turn not in TURNS or isinstance(turn, bool):
        raise RowError("missing_field", f'"turn" is {turn!r}: 1 or 2 is meant')
    sides = [_conversation(row, name, turn) for name in ("conversation_a", "conversation_b")]
    chosen, rejected = sides if winner == "model_a" else sides[::-1]
    names = ("question_id", "model_a", "model_b", "judge", "turn")
    vote = "/".join(str(row[name]) for name in names if row.get(name) is not None)
    return {"chosen": chosen, "rejected": rejected, "subset": TURNS[turn], "id": vote}


def _conversation(row: Raw, name: str, turn: int) -> list[Any]:
    messages = row[name]
    if not isinstance(messages, list) or len(messages) < 2 * turn:
        raise RowError("missing_field", f'"{name}" is no conversation of {2 * turn} messages, for turn {turn}')
    return messages[: 2 * turn]


MT_BENCH = Layout(
    name="mt_bench",
    title="MT-Bench human judgements",
    fields=("winner", "conversation_a", "conversation_b", "turn"),
    fits=_fits,
    read=_read,
    subsets=tuple(TURNS.values()),
    files=r"human-.*",
    hub=((None, "human", ""),),
)
