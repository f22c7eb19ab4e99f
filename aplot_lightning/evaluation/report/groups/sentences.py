"""What a table of groups says, in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aplot_lightning.evaluation.report.tables import number

if TYPE_CHECKING:
    from aplot_lightning.evaluation.report.groups.table import FamilyTable

LEVEL = 0.05


def sentences(table: FamilyTable) -> list[str]:
    """A sentence for ID, one for the OOD mean, one for the speed of convergence, as far as there are figures."""
    said = []
    if len(table.groups) > 1:
        said += [f"{shown}: {_answer(table, name)}" for name, shown in table.questions.items()]
    return [*said, *_convergence(table)]


def _answer(table: FamilyTable, name: str) -> str:
    """Which groups differ from the first on a set."""
    first = table.first
    differences = {group: table.cell(group, name).difference for group in table.groups}
    tested = {
        group: (found.value, found.p_holm) for group, found in differences.items() if found and found.p_holm is not None
    }
    if not tested:
        return f"nothing can be compared with {first}."
    if len(tested) == 1:
        ((group, (value, p_value)),) = tested.items()
        verb = "differs" if p_value < LEVEL else "does not differ"
        return f"{group} {verb} from {first} after Holm correction ({number(value, sign=True)}, {p_equals(p_value)})."
    clear = {group: value for group, (value, p_value) in tested.items() if p_value < LEVEL}
    text = f"of {len(tested)} others {len(clear) or 'none'} {'differ' if len(clear) > 1 else 'differs'} from {first}"
    text += " after Holm correction"
    for how, sign in {"better": 1, "worse": -1}.items():
        if those := [f"{group} ({number(value, sign=True)})" for group, value in clear.items() if value * sign > 0]:
            text += f"; {how}: {', '.join(those)}"
    return f"{text}."


def p_text(p_value: float | None) -> str:
    """Three decimals, or that it is below them; "-" for None."""
    return "<0.001" if p_value is not None and p_value < 0.001 else number(p_value)


def p_equals(p_value: float) -> str:
    """ "p = 0.012", or "p < 0.001"."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _convergence(table: FamilyTable) -> list[str]:
    known = {group: cost.steps for group, cost in table.costs.items() if cost.steps is not None}
    own = known.pop(table.first, None)
    if own is None or not known:
        return []
    sooner = sum(steps < own for steps in known.values())
    said = f"speed: {table.first} took {own:,.0f} steps to 95 % of its own final validation accuracy above chance, and "
    said += f"{sooner or 'none'} of {len(known)} others took fewer"
    return [f"{said} (means over seeds, not tested; what ends lower is there sooner)."]
