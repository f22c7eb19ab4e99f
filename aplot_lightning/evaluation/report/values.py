"""The results of groups of runs as two tables for other programs: every value of every seed, and every statistic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.evaluation.report.estimates import Difference, Mean
from aplot_lightning.evaluation.report.frame import TRAIN
from aplot_lightning.evaluation.report.results import GroupResults

if TYPE_CHECKING:
    import pandas as pd

STEPS = "steps_to_95_percent"
LEFT_OUT = ("pairs", "ci95_low", "ci95_high")  # the statistics have them
ESTIMATES = ("group", "set", "metric", "value", "low", "high", "p", "p_prompts", "p_holm", "pairs", "seeds")


def write_csv(results: GroupResults, path: str | Path) -> tuple[Path, Path]:
    """Writes NAME.csv with `values_frame` and NAME_estimates.csv with `estimates_frame`; returns both paths."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    estimates = path.with_name(f"{path.stem}_estimates{path.suffix}")
    values_frame(results).to_csv(path, index=False, lineterminator="\n")
    estimates_frame(results).to_csv(estimates, index=False, lineterminator="\n")
    return path, estimates


def values_frame(results: GroupResults) -> pd.DataFrame:
    """One row for each group, seed, set and metric, with the columns group, seed, set, metric and value.

    Figures of a whole run, such as its seconds, have the set ``train``.
    """
    import pandas as pd

    columns = ["group", "seed", "set", "metric", "value"]
    steps = [
        (group, seed, TRAIN, STEPS, float(found.steps))
        for group, by_seed in results.convergence.items()
        for seed, found in by_seed.items()
        if found.steps is not None
    ]
    own = results.frame[(results.frame["subset"] == "") & ~results.frame["metric"].isin(LEFT_OUT)][columns]
    values = pd.concat([own, pd.DataFrame(steps, columns=columns)]) if steps else own
    groups, sets = list(results.groups), [*results.sets, TRAIN]
    order = [values["group"].map(groups.index), values["set"].map(sets.index), values["metric"], values["seed"]]
    places = pd.DataFrame({index: key.to_numpy() for index, key in enumerate(order)}).sort_values([0, 1, 2, 3]).index
    return values.iloc[places]


def estimates_frame(results: GroupResults) -> pd.DataFrame:
    """One row for each accuracy and each difference, with the columns `ESTIMATES`; what is unknown is missing."""
    import pandas as pd

    rows = [
        (group, name, metric, *_statistics(found))
        for (group, name), result in results.results.items()
        for metric, found in {"accuracy": result.accuracy, "difference": result.difference}.items()
        if found is not None
    ]
    return pd.DataFrame(rows, columns=list(ESTIMATES))


def _statistics(mean: Mean) -> tuple[Any, ...]:
    low, high = mean.interval or (None, None)
    tested = (mean.p_value, mean.p_prompts, mean.p_holm) if isinstance(mean, Difference) else (None, None, None)
    return mean.value, low, high, *tested, mean.pairs, mean.seeds
