"""How a row of somebody's data becomes a comparison or is refused with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aplot_lightning.data.comparisons.comparison import Comparison, RowError
from aplot_lightning.data.comparisons.conversations import conversations_of, refuse_empty
from aplot_lightning.data.comparisons.values import kind_of, number_of, text_of

# The fields of a row that mean something; all others are ignored.
FIELDS = (
    *("prompt", "chosen", "rejected", "responses", "scores", "ranks"),
    *("margin", "target", "chosen_score", "rejected_score", "id", "source", "subset"),
)


def parse_comparison(row: Any, where: str, source_name: str) -> Comparison:
    """One comparison out of a row in any of the layouts of the package's docstring; a field that is null is absent.

    Args:
        row: the row, usually a dict; extra fields are ignored.
        where: file and line, kept for messages.
        source_name: the comparison's source where the row names none.

    Raises:
        RowError: the row cannot be used; kind not_json (no object), missing_field (also of the wrong type or out of its
            range), empty_response, identical_responses or tie.
    """
    if not isinstance(row, Mapping):
        raise RowError("not_json", f"not a JSON object but {kind_of(row)}")
    fields = {name: value for name, value in row.items() if value is not None}
    many = "responses" in fields and "chosen" not in fields and "rejected" not in fields
    if many:
        sides = _list_of_responses(fields)
        pairs, scores = _orders(fields, len(sides))
    else:
        sides = {name: _required(fields, name) for name in ("chosen", "rejected")}
        pairs, scores = ((0, 1),), _pair_scores(fields)
    prompt, responses = conversations_of(fields.get("prompt"), sides)
    comparison = Comparison(
        prompt=prompt,
        responses=responses,
        pairs=pairs,
        margin=number_of(fields["margin"], "margin") if "margin" in fields else None,
        target=_target(fields["target"]) if "target" in fields else None,
        scores=scores,
        source=_label(fields, "source", source_name),
        subset=_label(fields, "subset", ""),
        id=_label(fields, "id", where),
        where=where,
    )
    _refuse_unusable(comparison, tuple(sides))
    return comparison


def _refuse_unusable(comparison: Comparison, names: Sequence[str]) -> None:
    responses, pairs, scores = comparison.responses, comparison.pairs, comparison.scores
    for name, response in zip(names, responses, strict=True):
        refuse_empty(response, name)
    compared = pairs or tuple((0, place) for place in range(1, len(names)))
    for one, other in compared:
        if responses[one] == responses[other]:
            raise RowError("identical_responses", f"{names[one]} and {names[other]} are the same")
    if not pairs or (scores is not None and any(scores[winner] == scores[loser] for winner, loser in pairs)):
        raise RowError("tie", f"{' and '.join(names[:3])}{' ...' if len(names) > 3 else ''} are rated the same")


def _list_of_responses(fields: Mapping[str, Any]) -> dict[str, Any]:
    values = fields["responses"]
    if not isinstance(values, list) or len(values) < 2:
        raise RowError("missing_field", '"responses" is not a list of two or more')
    return {f"responses[{place}]": value for place, value in enumerate(values)}


def _orders(fields: Mapping[str, Any], count: int) -> tuple[tuple[tuple[int, int], ...], tuple[float, ...] | None]:
    """Every strict order among `count` responses, and their scores; a smaller rank is a better one and no score."""
    name = "scores" if "scores" in fields else "ranks"
    values = _required(fields, name, 'no "scores" and no "ranks"')
    if not isinstance(values, list) or len(values) != count:
        raise RowError("missing_field", f'"{name}" is not a list of {count} numbers, one for each response')
    numbers = tuple(number_of(value, f"{name}[{place}]") for place, value in enumerate(values))
    sign = 1 if name == "scores" else -1
    places = range(count)
    pairs = tuple((one, other) for one in places for other in places if sign * numbers[one] > sign * numbers[other])
    return pairs, numbers if name == "scores" else None


def _pair_scores(fields: Mapping[str, Any]) -> tuple[float, float] | None:
    """``chosen_score`` and ``rejected_score``, in UltraFeedback's binarized layout ``score_chosen`` and ..."""
    found = []
    for side in ("chosen", "rejected"):
        name = next((name for name in (f"{side}_score", f"score_{side}") if name in fields), None)
        found.append(None if name is None else number_of(fields[name], name))
    chosen, rejected = found
    if chosen is None and rejected is None:
        return None
    if chosen is None or rejected is None:
        raise RowError(
            "missing_field", f'no "{"chosen" if chosen is None else "rejected"}_score" beside the other score'
        )
    return chosen, rejected


def _required(fields: Mapping[str, Any], name: str, message: str = "") -> Any:
    if name not in fields:
        there = ", ".join(repr(str(field)[:30]) for field in list(fields)[:8]) or "nothing"
        raise RowError("missing_field", f"{message or f'no {chr(34)}{name}{chr(34)}'} (the row has {there})")
    return fields[name]


def _target(value: Any) -> float:
    target = number_of(value, "target")
    if not 0 <= target <= 1:
        raise RowError("missing_field", f'"target" is {target:g}, not between 0 and 1')
    return target


def _label(fields: Mapping[str, Any], name: str, default: str) -> str:
    value = fields.get(name, default)
    return str(value) if isinstance(value, int) else text_of(value, name)
