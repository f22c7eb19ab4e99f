"""Rows on their way from an input to an output: what of them is to be scored, and what is written for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aplot_lightning.data.comparisons import Conversation, RowError, conversation_of


@dataclass
class Row:
    """One input row on its way to the output.

    Attributes:
        where: file and line.
        content: the row as it was read; empty where it could not be.
        layout: ``pair``, ``responses`` or ``response``.
        conversations: what is to be scored, in the order of the row.
        problem: why the row has no rewards; None where it has.
        by_model: each model's rewards, one a conversation.
        rewards: what comes of them, one a conversation.
    """

    where: str
    content: dict[str, Any] = field(default_factory=dict)
    layout: str = "pair"
    conversations: list[Conversation] = field(default_factory=list)
    problem: str | None = None
    by_model: list[list[float]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    @property
    def gap(self) -> float | None:
        """Chosen minus rejected reward; None where it is no pair or has no rewards."""
        return self.rewards[0] - self.rewards[1] if self.layout == "pair" and self.problem is None else None


def scored(row: Row) -> dict[str, Any]:
    """The input row with its rewards, null where there are none."""
    if row.layout == "responses":
        return {**row.content, "rewards": row.rewards if row.problem is None else None}
    names = ["reward"] if row.layout == "response" else ["chosen_reward", "rejected_reward"]
    rewards = row.rewards if row.problem is None else [None] * len(names)
    return {**row.content, **dict(zip(names, rewards, strict=True))}


def read_row(where: str, content: Any) -> Row:
    """What of a row is to be scored, or why it cannot be."""
    return _read(where, content, _layout(content) if isinstance(content, Mapping) else "pair")


def read_candidates(where: str, content: Any) -> Row:
    """As `read_row`, of a row that has to hold ``responses``."""
    return _read(where, content, "responses")


def _read(where: str, content: Any, layout: str) -> Row:
    if isinstance(content, RowError):
        return Row(where, layout=layout, problem=str(content))
    if not isinstance(content, Mapping):
        return Row(where, layout=layout, problem="not a JSON object")
    row = Row(where, dict(content), layout)
    try:
        for name, side in _sides(row):
            try:
                row.conversations.append(conversation_of(content.get("prompt"), side))
            except RowError as error:
                row.problem = f"{name}: {error}"
    except RowError as error:
        row.problem = str(error)
    return row


def _layout(content: Mapping[str, Any]) -> str:
    if "chosen" in content or "rejected" in content:
        return "pair"
    return next((layout for layout in ("responses", "response") if layout in content), "pair")


def _sides(row: Row) -> list[tuple[str, Any]]:
    """The responses of a row with their names; raises RowError where a field is missing."""
    names = ["chosen", "rejected"] if row.layout == "pair" else [row.layout]
    for name in names:
        if row.content.get(name) is None:
            raise RowError("missing_field", f'no "{name}"')
    if row.layout != "responses":
        return [(name, row.content[name]) for name in names]
    responses = row.content["responses"]
    if not isinstance(responses, list) or not responses:
        raise RowError("missing_field", '"responses" is not a list of responses')
    return [(f"responses[{place}]", response) for place, response in enumerate(responses)]
