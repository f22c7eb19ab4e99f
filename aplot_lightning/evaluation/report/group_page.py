"""The results of groups of runs as short text, sentences and a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np

from aplot_lightning.evaluation.report.convergence import FEWEST_VALIDATIONS, Convergence
from aplot_lightning.evaluation.report.estimates import Difference
from aplot_lightning.evaluation.report.frame import SELECTING, TRAIN
from aplot_lightning.evaluation.report.rendering import render
from aplot_lightning.evaluation.report.results import GroupResults
from aplot_lightning.evaluation.report.tables import Table, estimate_text, number, p_equals, p_text

BESIDE = {  # heading -> metric of metrics.json
    "hard third": "hard_accuracy",
    "ECE": "ece",
    "log loss": "log_loss",
    "reward~length": "length_correlation",
}
TRAINING = {
    "seconds": "seconds",
    "pairs/s": "pairs_per_second",
    "peak memory (MiB)": "peak_memory_mib",
}
PICTURES = {
    "differences": "Differences to the first group with their intervals, ID and OOD mean",
    "id_against_ood": "Accuracy out of distribution against accuracy in distribution, one point per run",
    "learning_curves": "Validation accuracy over optimizer steps, mean over seeds",
}


def groups_text(results: GroupResults) -> str:
    """For a terminal: each group's seeds, and for ID and OOD mean its accuracy, difference and corrected p-value."""
    header = ["", "seeds"]
    for heading in results.questions.values():
        header += [heading, f"- {results.first}", "p (Holm)"]
    rows = []
    for group, runs in results.groups.items():
        row = [group, str(len(runs))]
        for name in results.questions:
            result = results.result(group, name)
            row += [number(result.accuracy.value if result.accuracy else None), *_difference(result.difference)]
        rows.append(row)
    return "\n".join([Table(header, rows).text(), *_seed_notes(results), *results.notes])


def _difference(difference: Difference | None) -> list[str]:
    return [estimate_text(difference, sign=True), p_text(difference.p_holm) if difference else "-"]


def sentences(results: GroupResults) -> list[str]:
    """A sentence on ID, one on the OOD mean and one on the speed of learning, as far as there are figures."""
    questions = results.questions.items() if len(results.groups) > 1 else ()
    return [f"{heading}: {_answer(results, name)}" for name, heading in questions] + _speed(results)


def _answer(results: GroupResults, name: str) -> str:
    """Which groups differ from the first on a set."""
    first = results.first
    differences = {group: results.result(group, name).difference for group in results.groups}
    tested = {group: found for group, found in differences.items() if found and found.p_holm is not None}
    if not tested:
        return f"nothing can be compared with {first}."
    if len(tested) == 1:
        ((group, only),) = tested.items()
        verb = "differs" if only.significant else "does not differ"
        figures = f"{number(only.value, sign=True)}, {p_equals(only.p_holm)}"
        return f"{group} {verb} from {first} after Holm correction ({figures})."
    clear = {group: found.value for group, found in tested.items() if found.significant}
    text = f"of {len(tested)} others {len(clear) or 'none'} {'differ' if len(clear) > 1 else 'differs'} from {first}"
    text += " after Holm correction"
    for how, sign in {"better": 1, "worse": -1}.items():
        if those := [f"{group} ({number(value, sign=True)})" for group, value in clear.items() if value * sign > 0]:
            text += f"; {how}: {', '.join(those)}"
    return f"{text}."


def _speed(results: GroupResults) -> list[str]:
    means = {group: _mean_steps(found.values()) for group, found in results.convergence.items()}
    known = {group: steps for group, steps in means.items() if steps is not None}
    own = known.pop(results.first, None)
    if own is None or not known:
        return []
    sooner = sum(steps < own for steps in known.values())
    return [
        (
            f"speed: {results.first} took {own:,.0f} steps to 95 % of its own final validation accuracy above chance, "
            f"and {sooner or 'none'} of {len(known)} others took fewer (means over seeds, not tested; a group that "
            "ends lower is there sooner)."
        )
    ]


def _mean_steps(found: Iterable[Convergence]) -> float | None:
    """None if a seed has no steps, so that no seed is ignored."""
    steps = [each.steps for each in found]
    known = [each for each in steps if each is not None]
    return float(np.mean(known)) if known and len(known) == len(steps) else None


def groups_page(results: GroupResults, pictures: Sequence[str] = ()) -> str:
    """All results as Markdown without a title: answers, main table, cost, every set, how to read it.

    Args:
        results: of `compare_groups`.
        pictures: paths of what `draw_groups` drew, relative to the Markdown file.
    """
    tested = [each.difference for each in results.results.values() if each.difference is not None]
    return render(
        "groups",
        first=results.first,
        sentences=sentences(results),
        notes=[*_seed_notes(results), *results.notes],
        accuracy=_main_table(results),
        pictures={path: PICTURES.get(PurePosixPath(path).stem, "") for path in pictures},
        cost=_cost_table(results),
        sets={set_heading(name, kind): _set_table(results, name) for name, kind in results.sets.items()},
        tests=sum(each.p_holm is not None for each in tested),
        fewest=FEWEST_VALIDATIONS,
    )


def set_heading(name: str, kind: str) -> str:
    """A set's name, and whether it selects."""
    return f"{name} (selects)" if kind in SELECTING else name


def _main_table(results: GroupResults) -> Table:
    header = ["", "seeds"]
    for heading in results.questions.values():
        header += [heading, f"{heading} − {results.first}", "p", "p (Holm)"]
    rows = []
    for group, runs in results.groups.items():
        row = [group, str(len(runs))]
        for name in results.questions:
            result = results.result(group, name)
            difference, corrected = _difference(result.difference)
            p_value = p_text(result.difference.p_value if result.difference else None)
            row += [estimate_text(result.accuracy), difference, p_value, corrected]
        rows.append(row)
    return Table(header, rows)


def _set_table(results: GroupResults, name: str) -> Table:
    rows = []
    for group in results.groups:
        accuracy, difference = results.result(group, name).accuracy, results.result(group, name).difference
        figures = [list(results.values(group, name, metric).values()) for metric in BESIDE.values()]
        rows.append(
            [
                group,
                str(accuracy.seeds if accuracy else 0),
                str(accuracy.pairs if accuracy else 0),
                estimate_text(accuracy),
                estimate_text(difference, sign=True),
                p_text(difference.p_value if difference else None),
                p_text(difference.p_prompts if difference else None),
                *(number(float(np.mean(values)) if values else None) for values in figures),
            ]
        )
    return Table(["", "seeds", "pairs", "accuracy", f"− {results.first}", "p", "p over prompts", *BESIDE], rows)


def _cost_table(results: GroupResults) -> Table:
    rows = [
        [
            group,
            _mean_and_spread(results, group, "steps"),
            convergence_text(list(results.convergence.get(group, {}).values())),
            *(_mean_and_spread(results, group, metric) for metric in TRAINING.values()),
        ]
        for group in results.groups
    ]
    return Table(["", "steps", "steps to 95 %", *TRAINING], rows)


def _mean_and_spread(results: GroupResults, group: str, metric: str) -> str:
    """Mean over seeds of a figure of the training, with the standard deviation if there are several values."""
    values = list(results.values(group, TRAIN, metric).values())
    if not values:
        return "-"
    form = "{:,.0f}" if np.mean(values) >= 100 else "{:.3g}"
    mean = form.format(float(np.mean(values)))
    return mean if len(values) < 2 or np.ptp(values) == 0 else f"{mean} ± {form.format(float(np.std(values, ddof=1)))}"


def convergence_text(found: Sequence[Convergence]) -> str:
    """Mean over the seeds that converged, and how many did not; or the reason."""
    known = [each for each in found if each.steps is not None]
    if not known:
        return f"- ({', '.join(dict.fromkeys(each.reason for each in found))})"
    steps = [each.steps or 0 for each in known]
    text = f"{'≤ ' if any(each.at_most for each in known) else ''}{np.mean(steps):,.0f}"
    if len(steps) > 1 and np.ptp(steps):
        text += f" ± {np.std(steps, ddof=1):,.0f}"
    return f"{text} ({len(known)} of {len(found)} seeds)" if len(known) < len(found) else text


def _seed_notes(results: GroupResults) -> list[str]:
    """A note on groups with a single seed, whose figures do not show the spread between seeds."""
    single = [group for group, runs in results.groups.items() if len(runs) == 1]
    if not single:
        return []
    every = len(single) == len(results.groups)
    who, verb = ("Every group", "has") if every else (", ".join(single), "has" if len(single) == 1 else "have")
    return [f"{who} {verb} one seed: intervals and p-values are over prompts only and say nothing of other seeds."]
