"""The report's paragraphs on a confirmation: sentences first, then the tables behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from aplot_lightning.errors import RunError
from aplot_lightning.evaluation.report.estimates import Difference
from aplot_lightning.evaluation.report.frame import OOD_MEAN
from aplot_lightning.evaluation.report.group_page import set_heading
from aplot_lightning.evaluation.report.rendering import markdown_table, render
from aplot_lightning.evaluation.report.tables import Table, count, duration, escape, estimate_text, number, p_text
from aplot_lightning.evaluation.report.verdict import Level, gain_sentence, selection_sentence
from aplot_lightning.files import write_text
from aplot_lightning.tuning.comparison import MARK
from aplot_lightning.tuning.study import StudyConfig
from aplot_lightning.tuning.study_report import PLOTS, ranked
from aplot_lightning.tuning.trial_queue import SLOT

if TYPE_CHECKING:
    import optuna

    from aplot_lightning.evaluation.report import GroupResults

PAGE = "confirmation"
ALONE = "The study has no baseline, so there is no gain to test; name one under `baselines`."
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
class ConfirmedConfig:
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
            self.name,
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
    from aplot_lightning.evaluation.report import compare_groups, draw_groups, groups_page, write_csv

    results = compare_groups(confirmed.runs)
    configs = {name: _confirmed_config(config, study, confirmed, name) for name in confirmed.runs}
    sentences = [ALONE]
    if confirmed.baseline is not None:
        sentences = [
            gain_sentence(confirmed.baseline, len(confirmed.seeds), _differences(results, confirmed)),
            selection_sentence(
                config.monitor,
                len(ranked(config, study)),
                configs[confirmed.chosen].level,
                confirmed.baseline,
                configs[confirmed.baseline].level,
                lower_is_better=config.direction == "minimize",
            ),
        ]
    if confirmed.twin is not None:
        sentences.insert(0, f"What was chosen is the config of {confirmed.twin} itself: no other trial was better.")
    pictures = draw_groups(results, config.folder / PLOTS)
    shown = [f"{PLOTS}/{path.name}" for path in pictures]
    page = render("setting", name=f"Confirmation of study {config.study}", page=groups_page(results, shown))
    write_text(config.folder / f"{PAGE}.md", page)
    write_csv(results, config.folder / f"{PAGE}.csv")
    header = ["config", "trial", f"{config.monitor} in the trial", "with fresh seeds", "change", "id accuracy"]
    return [
        *(f"**{escape(sentence)}**" for sentence in sentences),
        HOW.format(seeds=", ".join(map(str, confirmed.seeds)), time=_time(confirmed)),
        markdown_table(accuracy_table(results, confirmed.chosen)),
        *map(escape, results.notes),
        f"Every figure of these runs is in [{PAGE}.md]({PAGE}.md) and {PAGE}.csv.",
        "The value that chose the trial against the same metric with fresh seeds; baselines were not chosen by it:",
        markdown_table(Table(header, [each.row() for each in configs.values()])),
    ]


def accuracy_table(results: GroupResults, chosen: str) -> Table:
    """Accuracy of every config on every set, and the differences to the first, with the chosen config's p-value."""
    first, *others = results.groups
    p_header = [f"p ({chosen} − {first})"] if others else []
    rows = []
    for name, kind in results.sets.items():
        own = [results.result(group, name) for group in results.groups]
        differences = [each.difference for each in own[1:]]
        p_value = differences[-1].p_value if differences and differences[-1] else None
        rows.append(
            [
                set_heading(name, kind),
                *(estimate_text(each.accuracy) for each in own),
                *(estimate_text(difference, sign=True) for difference in differences),
                *([p_text(p_value)] if others else []),
            ]
        )
    return Table(["set", *results.groups, *(f"{name} − {first}" for name in others), *p_header], rows)


def _differences(results: GroupResults, confirmed: Confirmed) -> dict[str, Difference]:
    """Chosen config minus baseline on the sets that a study is made for."""
    found = {name: results.results.get((confirmed.chosen, name)) for name in (OOD_MEAN, "id")}
    return {name: each.difference for name, each in found.items() if each is not None and each.difference is not None}


def _confirmed_config(config: StudyConfig, study: optuna.Study, confirmed: Confirmed, name: str) -> ConfirmedConfig:
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
    return ConfirmedConfig(name, own[0] if own else None, values, known)


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
