"""The report's paragraphs on a confirmation: sentences first, then the tables that they are read from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from aplot_lightning.errors import RunError
from aplot_lightning.evaluation.report.compare import OOD_MEAN
from aplot_lightning.evaluation.report.tables import escape, estimate_text, markdown_table, number
from aplot_lightning.tuning.comparison import MARK
from aplot_lightning.tuning.study import StudyConfig
from aplot_lightning.tuning.study_report import PLOTS, duration, ranked
from aplot_lightning.tuning.trial_queue import SLOT
from aplot_lightning.tuning.verdict import Difference, Level, count, gain_sentence, selection_sentence

if TYPE_CHECKING:
    import optuna

    from aplot_lightning.evaluation.report.groups import FamilyTable

PAGE = "confirmation"
ALONE = "The study has no baseline, so there is no gain to ask about; name one under `baselines`."
HOW = (
    "Every config below was trained with the seeds {seeds}, which no trial had; the test sets were evaluated once, at "
    "the end of those runs ({time}). Intervals are over prompts and seeds; the p-values of the sentence above are "
    "corrected by Holm over all configs on id and OOD mean, those of the table are not."
)


@dataclass(frozen=True)
class Confirmed:
    """What was retrained.

    Attributes:
        runs: by group, its finished runs in the order of the seeds; the baselines first, the chosen config last.
        seeds: the fresh seeds.
        twin: the baseline whose very config was chosen, so that its runs are the chosen one's too.
    """

    runs: Mapping[str, Sequence[Path]]
    seeds: Sequence[int]
    twin: str | None = None

    @property
    def chosen(self) -> str:
        return list(self.runs)[-1]

    @property
    def baseline(self) -> str | None:
        """The first of the baselines, which the gain is over."""
        return next((name for name in self.runs if name != self.chosen), None)


@dataclass(frozen=True)
class Group:
    """One config in the study and in its confirmation.

    Attributes:
        name: of it.
        trial: that had it; None for a baseline that is no point of the space.
        values: the study's metric of each fresh run.
        identities: accuracy on `id` of each fresh run that has it.
    """

    name: str
    trial: optuna.trial.FrozenTrial | None
    values: Sequence[float]
    identities: Sequence[float]

    @property
    def level(self) -> Level:
        trial = None if self.trial is None else self.trial.value
        return Level(trial, mean(self.values), mean(self.identities) if self.identities else None)

    def row(self) -> list[str]:
        """Its line of the table on regression to the mean."""
        level = self.level
        spread = f" (sd {stdev(self.values):.3f})" if len(self.values) > 1 else ""
        return [
            escape(self.name),
            "-" if self.trial is None else str(self.trial.number),
            number(level.trial),
            f"{number(level.fresh)}{spread}",
            number(None if level.trial is None else level.fresh - level.trial, sign=True),
            number(level.identity),
        ]


def findings(config: StudyConfig, study: optuna.Study, confirmed: Confirmed) -> list[str]:
    """Paragraphs of Markdown: whether the gain is real, what of it was selection, and the figures.

    Writes confirmation.md and two files of figures (CSV) into the study's directory, which hold all of the comparison.

    Raises:
        RunError: a run has no value of the study's metric.
    """
    from aplot_lightning.evaluation.report.groups import compare_groups

    family = compare_groups(confirmed.runs)
    groups = {name: _group(config, study, confirmed, name) for name in confirmed.runs}
    sentences = [ALONE]
    if confirmed.baseline is not None:
        sentences = [
            gain_sentence(confirmed.baseline, len(confirmed.seeds), _differences(family, confirmed)),
            selection_sentence(
                config.monitor,
                len(ranked(config, study)),
                groups[confirmed.chosen].level,
                confirmed.baseline,
                groups[confirmed.baseline].level,
                lower_is_better=config.direction == "minimize",
            ),
        ]
    if confirmed.twin is not None:
        sentences.insert(0, f"What was chosen is the config of {confirmed.twin} itself: no other trial was better.")
    pictures = family.draw(config.folder / PLOTS)
    shown = [f"{PLOTS}/{path.name}" for path in pictures]
    title = f"# Confirmation of study {escape(config.study)}"
    (config.folder / f"{PAGE}.md").write_text(f"{title}\n\n{family.markdown(shown)}", encoding="utf-8")
    family.write_csv(config.folder / f"{PAGE}.csv")
    monitor = escape(config.monitor)
    header = ["config", "trial", f"{monitor} in the trial", "with fresh seeds", "change", "id accuracy"]
    return [
        *(f"**{escape(sentence)}**" for sentence in sentences),
        HOW.format(seeds=", ".join(map(str, confirmed.seeds)), time=_time(confirmed)),
        accuracy_table(family, confirmed.chosen),
        *map(escape, family.notes),
        f"Every figure of these runs is in [{PAGE}.md]({PAGE}.md) and {PAGE}.csv.",
        "What is left of values by which a trial was chosen, beside those of baselines, which nothing was chosen by:",
        markdown_table(header, [group.row() for group in groups.values()]),
    ]


def accuracy_table(family: FamilyTable, chosen: str) -> str:
    """Accuracy of every config on every set, and the differences to the first, with the chosen config's p-value."""
    first, *others = family.groups
    columns = [f"{escape(name)} − {escape(first)}" for name in others]
    header = [
        "set",
        *map(escape, family.groups),
        *columns,
        *([f"p ({escape(chosen)} − {escape(first)})"] * bool(others)),
    ]
    rows = []
    for name, kind in family.sets.items():
        cells = [family.cell(group, name) for group in family.groups]
        differences = [cell.difference for cell in cells[1:]]
        p_value = differences[-1].p_value if differences and differences[-1] else None
        role = " (selects)" if kind in ("validation", "ood_validation") else ""
        rows.append(
            [
                escape(name) + role,
                *(estimate_text(cell.accuracy) for cell in cells),
                *(estimate_text(difference, sign=True) for difference in differences),
                *([number(p_value)] * bool(others)),
            ]
        )
    return markdown_table(header, rows)


def _differences(family: FamilyTable, confirmed: Confirmed) -> dict[str, Difference]:
    """Chosen config minus baseline on the sets that a study is made for."""
    found = {}
    for name in (OOD_MEAN, "id"):
        cell = family.cells.get((confirmed.chosen, name))
        if cell is not None and cell.difference is not None:
            each = cell.difference
            found[name] = Difference(each.value, each.interval, each.p_holm)
    return found


def _group(config: StudyConfig, study: optuna.Study, confirmed: Confirmed, name: str) -> Group:
    values, identities = [], []
    for run in confirmed.runs[name]:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        value = figure(metrics, config.monitor)
        if value is None:
            raise RunError(f"confirmation: {run / 'metrics.json'} has no {config.monitor}, which chose the trial")
        values.append(value)
        identities.append(figure(metrics, "id/accuracy"))
    trials = ranked(config, study)
    slot = f"baseline:{name}"
    own = trials[:1] if name == confirmed.chosen else [each for each in trials if each.user_attrs.get(SLOT) == slot]
    known = [identity for identity in identities if identity is not None]
    return Group(name, own[0] if own else None, values, known)


def _time(confirmed: Confirmed) -> str:
    every = {run for runs in confirmed.runs.values() for run in runs}
    marks = [json.loads((run / MARK).read_text(encoding="utf-8")) for run in every]
    return f"{count(len(marks), 'run')}, {duration(sum(mark['seconds'] for mark in marks))} in all"


def figure(metrics: Mapping[str, Any], monitor: str) -> float | None:
    """A metric of metrics.json by the name that it is logged under, such as ood_validation/topics/accuracy."""
    node: Any = metrics
    for part in monitor.split("/"):
        node = node.get(part) if isinstance(node, Mapping) else None
    return None if node is None else float(node)
