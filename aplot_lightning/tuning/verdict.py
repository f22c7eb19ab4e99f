"""What a study has shown, in two sentences: whether the gain over the baseline is real, and what of it is selection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aplot_lightning.evaluation.report.tables import interval_text, number
from aplot_lightning.evaluation.statistics import Interval

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """Chosen config minus baseline on one set, paired over prompts and seeds.

    Attributes:
        value: difference of accuracies.
        interval: its 95 % interval; None where there is none.
        p_value: two-sided, corrected for the other questions that are asked beside it; None where there is none.
    """

    value: float
    interval: Interval | None
    p_value: float | None

    @property
    def verdict(self) -> str:
        """Real only where the interval and the test agree that it is not zero."""
        sure = self.interval is not None and self.p_value is not None and self.p_value < LEVEL
        if sure and self.interval is not None and self.interval[0] > 0:
            return "real"
        if sure and self.interval is not None and self.interval[1] < 0:
            return "negative, a loss"
        return "not shown"

    def __str__(self) -> str:
        p = "no p-value" if self.p_value is None else f"p {p_text(self.p_value)}"
        return f"{number(self.value, sign=True)} {interval_text(self.interval, sign=True)}, {p}"


@dataclass(frozen=True)
class Level:
    """What one config reached.

    Attributes:
        trial: its value in the study, averaged over the trial's seeds; None where it was no trial.
        fresh: the same metric over the fresh seeds.
        identity: mean accuracy on `id` over the fresh seeds; None where there is no such set.
    """

    trial: float | None
    fresh: float
    identity: float | None


def gain_sentence(baseline: str, seeds: int, differences: Mapping[str, Difference]) -> str:
    """Whether the chosen config is better than the baseline on sets that selected nothing.

    Args:
        baseline: its name.
        seeds: fresh ones that both were trained with.
        differences: by set, those that are to be named, the most telling first.
    """
    if not differences:
        return f"Nothing says whether the gain over {baseline} is real: no test set was evaluated."
    parts = [f"{each.verdict} on {name} ({each})" for name, each in differences.items()]
    warning = ", where the intervals know nothing of the spread between seeds" if seeds == 1 else ""
    return f"With {count(seeds, 'fresh seed')}{warning}, the gain over {baseline} is {' and '.join(parts)}."


def selection_sentence(
    monitor: str, trials: int, chosen: Level, baseline: str, other: Level, *, lower_is_better: bool = False
) -> str:
    """How much of the best trial's gain was the choice itself, which picks the luckiest (regression to the mean).

    Args:
        monitor: what the trials' values are.
        trials: complete ones that the best was chosen from.
        chosen: the best trial's config; its `trial` is known.
        baseline: name of what the gain is over.
        other: the baseline's own figures.
        lower_is_better: of the monitor.
    """
    assert chosen.trial is not None
    sign = -1 if lower_is_better else 1
    before = other.fresh if other.trial is None else other.trial
    gain, kept = sign * (chosen.trial - before), sign * (chosen.fresh - other.fresh)
    went = "(no trial of the study) reaches" if other.trial is None else f"went from {number(other.trial)} to"
    said = (
        f"The best of {count(trials, 'trial')} had a {monitor} of {number(chosen.trial)} and reaches "
        f"{number(chosen.fresh)} with fresh seeds ({_id_text(chosen)}), while {baseline} {went} {number(other.fresh)} "
        f"({_id_text(other)})"
    )
    if gain <= 0:
        return f"{said}: no trial was better than {baseline}, so there is no gain to ask about."
    on_id = ""
    if monitor.endswith("/accuracy") and chosen.identity is not None and other.identity is not None:
        on_id = f" and {number(chosen.identity - other.identity, sign=True)} on id"
    return (
        f"{said}: of the trial's gain of {number(gain, sign=True)} over {baseline}, {number(kept, sign=True)} is left "
        f"with fresh seeds{on_id}; {_share(1 - kept / gain)} of it was selection."
    )


def _share(share: float) -> str:
    if share <= 0:
        return "nothing"
    return "all" if share >= 1 else f"{100 * share:.0f} %"


def _id_text(level: Level) -> str:
    return "id was not evaluated" if level.identity is None else f"id accuracy {number(level.identity)}"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def count(number_of: int, thing: str) -> str:
    return f"{number_of} {thing}{'' if number_of == 1 else 's'}"
