"""Best-of-n: the candidates of a prompt, best first, with ties stated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aplot_lightning.inference.rows import Row


def best_first(rewards: Sequence[float], top: int | None = None) -> tuple[list[int], list[list[int]]]:
    """The places of n rewards, the largest first, and which of them are tied.

    Args:
        rewards: n finite numbers.
        top: how many places are wanted; None for all.

    Returns:
        order: at most `top` places; of equal rewards the one that comes first in the row is first.
        ties: groups of two or more places with the very same reward, best group first, that have a place in the order.
            A group may reach beyond it: then chance, not the model, decided who is among the top.
    """
    places = sorted(range(len(rewards)), key=lambda place: (-rewards[place], place))
    groups: dict[float, list[int]] = {}
    for place in places:
        groups.setdefault(rewards[place], []).append(place)
    order = places[:top]
    wanted = set(order)
    return order, [group for group in groups.values() if len(group) > 1 and group[0] in wanted]


def ranked(row: Row, top: int | None = None) -> dict[str, Any]:
    """The input row with ``rewards`` and ``order``, null where there are none, and ``ties`` where there are any."""
    if row.problem is not None:
        return {**row.content, "rewards": None, "order": None}
    order, ties = best_first(row.rewards, top)
    return {**row.content, "rewards": row.rewards, "order": order, **({"ties": ties} if ties else {})}
