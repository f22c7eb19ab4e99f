"""HHH-Alignment (BIG-bench's hhh_alignment: a folder with a task.json for each part; HuggingFaceH4/hhh_alignment)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.suites.layout import Layout, Ours, Raw, labels, text, user

SUBSETS = ("helpful", "honest", "harmless", "other")
TURN = "\n\nAssistant:"


def _fits(row: Raw) -> bool:
    return "input" in row and ("target_scores" in row or "targets" in row)


def _read(row: Raw, places: Sequence[str]) -> Ours:
    """BIG-bench's ``target_scores`` ({answer: score}) or the hub's ``targets`` (choices and labels)."""
    scores = _scores(row)
    if len(scores) != 2 or scores[0][1] == scores[1][1]:
        raise RowError("missing_field", "the targets are not one better and one worse answer")
    (chosen, _), (rejected, _) = sorted(scores, key=lambda each: -each[1])
    asked = text(row, "input")
    # a conversation of several turns stands in one text, its first speaker left out
    prompt = f"\n\nHuman: {asked}" if TURN in asked else user(asked)
    subset = str(row.get("subset") or next((name for name in reversed(places) if name in SUBSETS), ""))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **labels(row, subset)}


def _scores(row: Raw) -> list[tuple[str, float]]:
    targets: Any = row.get("target_scores")
    if targets is None:
        both = row.get("targets")
        names, values = (both.get("choices"), both.get("labels")) if isinstance(both, Mapping) else (None, None)
    else:
        names, values = (list(targets), list(targets.values())) if isinstance(targets, Mapping) else (None, None)
    fine = isinstance(names, list) and isinstance(values, list) and len(names) == len(values)
    if not fine or not all(isinstance(name, str) for name in names):  # type: ignore[union-attr]
        raise RowError("missing_field", "the targets are not answers with a score each")
    if not all(isinstance(value, int | float) for value in values):  # type: ignore[union-attr]
        raise RowError("missing_field", "the targets are not answers with a score each")
    return list(zip(names, map(float, values), strict=True))  # type: ignore[arg-type]


HHH = Layout(
    name="hhh",
    title="HHH-Alignment",
    fields=("input", "target_scores or targets"),
    fits=_fits,
    read=_read,
    subsets=SUBSETS,
    files=r"task\.json",
    hub=tuple((name, "test", name) for name in SUBSETS),
)
