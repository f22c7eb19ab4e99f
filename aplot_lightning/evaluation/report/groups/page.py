"""The table of groups as text for a terminal and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np

from aplot_lightning.evaluation.report.groups.cells import Cell, Difference
from aplot_lightning.evaluation.report.groups.costs import FEWEST_VALIDATIONS, Cost
from aplot_lightning.evaluation.report.groups.sentences import p_text
from aplot_lightning.evaluation.report.groups.table import FamilyTable
from aplot_lightning.evaluation.report.tables import escape, estimate_text, markdown_table, number, text_table

BESIDE = {  # of metrics.json
    "hard third": "hard_accuracy",
    "ECE": "ece",
    "log loss": "log_loss",
    "reward~length": "length_correlation",
}
PICTURES = {
    "differences": "Differences to the first group with their intervals, ID and OOD mean",
    "id_against_ood": "Accuracy out of distribution over accuracy in distribution, a point a run",
    "learning_curves": "Validation accuracy over optimizer steps, mean over seeds",
}

HOW_TO_READ = """\
Figures are means over seeds, from each run's best checkpoint. Chance is 0.5. OOD mean: unweighted, over the OOD test
sets. Sets that select are no evidence: checkpoints, and perhaps configs, were chosen on them.

Intervals (95 %): with several seeds for new prompts and new seeds: a bootstrap over prompts, which all seeds share,
widened by what seeds add (crossed random effects with Satterthwaite's degrees of freedom). With one seed: over prompts.

Differences are paired: same seed, same pair. p: two-sided; null hypothesis: new runs of the two are equally accurate on
new prompts (t-test of the same variances). p over prompts: null hypothesis: these very runs could change places in any
prompt (sign-flip permutation test; the unit is a prompt's difference, averaged over seeds); it says nothing of other
seeds. With one seed p is p over prompts.

Limits: few seeds say little of how much seeds matter, so with two or three the width of an interval varies much from
group to group. Simulated, where nothing differs, 2 to 8 % of p-values are below 0.05 with three seeds or more, and up
to 12 % with two.

p (Holm): corrected for the {tests} differences of all groups on ID and OOD mean together, so that the chance of even
one false difference among them is 5 %. p-values of single sets are not corrected.

Hard third: the pairs whose two responses share most words. ECE and log loss: of σ(Δ), without a margin. reward~length:
correlation of reward and characters.

Steps to 95 %: the first validation whose accuracy is 95 % of the way from chance to that of the last one, from {fewest}
validations on. It is no finer than the validations, and a run that ends lower is there sooner. ≤: it was the first
validation of a seed. Seconds: of the training loop. Peak memory: of the first rank's device, or of its process on a
CPU. ±: standard deviation over seeds."""


def short_text(table: FamilyTable) -> str:
    """The group, its seeds, and for ID and OOD mean the accuracy, the difference and its corrected p-value."""
    header = ["", "seeds"]
    for shown in table.questions.values():
        header += [shown, f"- {table.first}", "p (Holm)"]
    rows = []
    for group, runs in table.groups.items():
        row = [group, str(len(runs))]
        for name in table.questions:
            cell = table.cell(group, name)
            row += [number(cell.accuracy.value if cell.accuracy else None), *_difference(cell.difference)]
        rows.append(row)
    return "\n".join([text_table(header, rows), *seed_notes(table), *table.notes])


def _difference(difference: Difference | None) -> list[str]:
    corrected = p_text(difference.p_holm) if difference else "-"
    return [estimate_text(difference, sign=True), corrected]


def page(table: FamilyTable, pictures: Sequence[str] = ()) -> str:
    """The whole page, without a title."""
    parts = ["## Answers", "\n".join(f"- {escape(sentence)}" for sentence in table.sentences())]
    if noted := [*seed_notes(table), *table.notes]:
        parts.append("\n".join(f"- {escape(note)}" for note in noted))
    parts += ["## Accuracy", _main(table)]
    parts += [f"![{PICTURES.get(PurePosixPath(path).stem, '')}]({path})" for path in pictures]
    parts += ["## Cost", _costs(table), "## Every set"]
    for name in table.sets:
        parts += [f"### {escape(name)}{_role(table.sets[name])}", _one_set(table, name)]
    return "\n\n".join([*parts, "## How to read this", how_to_read(table)]) + "\n"


def _role(kind: str) -> str:
    return " (selects)" if kind in ("validation", "ood_validation") else ""


def _main(table: FamilyTable) -> str:
    header = ["", "seeds"]
    for shown in table.questions.values():
        header += [shown, f"{shown} − {escape(table.first)}", "p", "p (Holm)"]
    rows = []
    for group, runs in table.groups.items():
        row = [escape(group), str(len(runs))]
        for name in table.questions:
            cell = table.cell(group, name)
            shown, corrected = _difference(cell.difference)
            p_value = p_text(cell.difference.p_value) if cell.difference else "-"
            row += [estimate_text(cell.accuracy), shown, p_value, corrected]
        rows.append(row)
    return markdown_table(header, rows)


def _one_set(table: FamilyTable, name: str) -> str:
    header = ["", "seeds", "pairs", "accuracy", f"− {escape(table.first)}", "p", "p over prompts", *BESIDE]
    return markdown_table(header, [_set_row(table.cell(group, name)) for group in table.groups])


def _set_row(cell: Cell) -> list[str]:
    accuracy, difference = cell.accuracy, cell.difference
    return [
        escape(cell.group),
        str(accuracy.seeds) if accuracy else "0",
        str(accuracy.pairs) if accuracy else "0",
        estimate_text(accuracy),
        estimate_text(difference, sign=True),
        p_text(difference.p_value if difference else None),
        p_text(difference.p_prompts if difference else None),
        *(number(cell.metric(metric)) for metric in BESIDE.values()),
    ]


def _costs(table: FamilyTable) -> str:
    header = ["", "steps", "steps to 95 %", "seconds", "pairs/s", "peak memory (MiB)"]
    columns = ("seconds", "pairs_per_second", "peak_memory_mib")
    rows = [
        [escape(group), _number(cost, "steps"), convergence_text(cost), *(_number(cost, name) for name in columns)]
        for group, cost in table.costs.items()
    ]
    return markdown_table(header, rows)


def _number(cost: Cost, name: str) -> str:
    """Mean over seeds, with the standard deviation where there are several."""
    values = list(cost.training.get(name, {}).values())
    if not values:
        return "-"
    digits: Callable[[float], str] = "{:,.0f}".format if np.mean(values) >= 100 else "{:.3g}".format
    mean = digits(float(np.mean(values)))
    return mean if len(values) < 2 or np.ptp(values) == 0 else f"{mean} ± {digits(float(np.std(values, ddof=1)))}"


def convergence_text(cost: Cost) -> str:
    """Mean over the seeds that converged, and how many did not; or the reason."""
    known = [each for each in cost.convergence.values() if each.steps is not None]
    if not known:
        return f"- ({', '.join(dict.fromkeys(each.reason for each in cost.convergence.values()))})"
    steps = [each.steps or 0 for each in known]
    text = f"{'≤ ' if any(each.at_most for each in known) else ''}{np.mean(steps):,.0f}"
    if len(steps) > 1 and np.ptp(steps):
        text += f" ± {np.std(steps, ddof=1):,.0f}"
    missing = len(cost.convergence) - len(known)
    return f"{text} ({len(known)} of {len(cost.convergence)} seeds)" if missing else text


def seed_notes(table: FamilyTable) -> list[str]:
    """Which groups have a single seed, so that their figures say nothing of the spread between seeds."""
    single = [group for group, runs in table.groups.items() if len(runs) == 1]
    if not single:
        return []
    who = "Every group" if len(single) == len(table.groups) else ", ".join(single)
    verb = "has" if len(single) == 1 or who == "Every group" else "have"
    return [f"{who} {verb} one seed: intervals and p-values are over prompts only and say nothing of other seeds."]


def how_to_read(table: FamilyTable) -> str:
    """What the columns are, a short paragraph each."""
    tests = sum(cell.difference is not None and cell.difference.p_holm is not None for cell in table.cells.values())
    return HOW_TO_READ.format(tests=tests, fewest=FEWEST_VALIDATIONS)
