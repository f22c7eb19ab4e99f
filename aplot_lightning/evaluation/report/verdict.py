"""The two sentences of a study: whether the gain over the baseline is real, and how much of it was selection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aplot_lightning.evaluation.report.estimates import Difference
from aplot_lightning.evaluation.report.tables import count, interval_text, number, p_equals


@dataclass(frozen=True)
class Level:
    """The values of one config.

    Attributes:
        trial: its value in the study, averaged over the trial's seeds; None if it was no trial.
        fresh: the same metric over the fresh seeds.
        identity: mean accuracy on `id` over the fresh seeds; None without that set.
    """

    trial: float | None
    fresh: float
    identity: float | None


def verdict(difference: Difference) -> str:
    """Whether a difference to the baseline is real: only if interval and corrected test agree that it is not zero."""
    if difference.interval is None or not difference.significant:
        return "not shown"
    low, high = difference.interval
    return "real" if low > 0 else "negative, a loss" if high < 0 else "not shown"


def _verdict_on(name: str, difference: Difference) -> str:
    figures = f"{number(difference.value, sign=True)} {interval_text(difference.interval, sign=True)}"
    return f"{verdict(difference)} on {name} ({figures}, {p_equals(difference.p_holm)})"


def gain_sentence(baseline: str, seeds: int, differences: Mapping[str, Difference]) -> str:
    """Whether the chosen config is better than the baseline on sets that selected nothing.

    Args:
        baseline: its name.
        seeds: the number of fresh seeds that both were trained with.
        differences: by set, in the order of the sentence.
    """
    if not differences:
        return f"Nothing says whether the gain over {baseline} is real: no test set was evaluated."
    parts = [_verdict_on(name, each) for name, each in differences.items()]
    warning = ", where the intervals do not include the spread between seeds" if seeds == 1 else ""
    return f"With {count(seeds, 'fresh seed')}{warning}, the gain over {baseline} is {' and '.join(parts)}."


def selection_sentence(
    monitor: str, trials: int, chosen: Level, baseline: str, other: Level, *, lower_is_better: bool = False
) -> str:
    """How much of the best trial's gain was the choice itself, which picks the luckiest (regression to the mean).

    Args:
        monitor: the metric that is the trials' value.
        trials: the number of complete trials that the best was chosen from.
        chosen: the best trial's config; its `trial` is known.
        baseline: name of what the gain is over.
        other: the baseline's values.
        lower_is_better: whether the monitor is better if it is lower.
    """
    assert chosen.trial is not None
    sign = -1 if lower_is_better else 1
    before = other.fresh if other.trial is None else other.trial
    gain, kept = sign * (chosen.trial - before), sign * (chosen.fresh - other.fresh)
    path = "(no trial of the study) reaches" if other.trial is None else f"went from {number(other.trial)} to"
    text = (
        f"The best of {count(trials, 'trial')} had a {monitor} of {number(chosen.trial)} and reaches "
        f"{number(chosen.fresh)} with fresh seeds ({_id_text(chosen)}), while {baseline} {path} {number(other.fresh)} "
        f"({_id_text(other)})"
    )
    if gain <= 0:
        return f"{text}: no trial was better than {baseline}, so there is no gain to test."
    on_id = ""
    if monitor.endswith("/accuracy") and chosen.identity is not None and other.identity is not None:
        on_id = f" and {number(chosen.identity - other.identity, sign=True)} on id"
    return (
        f"{text}: of the trial's gain of {number(gain, sign=True)} over {baseline}, {number(kept, sign=True)} is left "
        f"with fresh seeds{on_id}; {_share(1 - kept / gain)} of it was selection."
    )


def _share(share: float) -> str:
    if share <= 0:
        return "nothing"
    return "all" if share >= 1 else f"{100 * share:.0f} %"


def _id_text(level: Level) -> str:
    return "id was not evaluated" if level.identity is None else f"id accuracy {number(level.identity)}"
