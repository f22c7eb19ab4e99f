"""The figures of runs as tidy pandas frames, one for metrics.json and one for the predictions.

`metrics_frame` has one row for each group, seed, run, set, subset and metric. `correct_frame` has one row for each pair
and one column for each seed; the statistics are computed on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aplot_lightning.evaluation.report.groups import Group
from aplot_lightning.evaluation.report.runs import Columns, Run
from aplot_lightning.evaluation.statistics import counted, right

if TYPE_CHECKING:
    import pandas as pd

ID, OOD, OOD_MEAN, TRAIN = "id", "ood", "OOD mean", "train"
OOD_MEAN_KIND = "ood_mean"
SELECTING = ("validation", "ood_validation")  # kinds of sets that may select a checkpoint or a config
COLUMNS = ("group", "seed", "run", "kind", "set", "subset", "metric", "value")


def metrics_frame(groups: Sequence[Group]) -> pd.DataFrame:
    """Every number of the runs' metrics.json.

    Returns:
        The columns `COLUMNS`. ``kind`` is validation, ood_validation, id, ood or train; ``subset`` is "" for a whole
        set; an interval is the two metrics ``ci95_low`` and ``ci95_high``. Figures of the training have the set
        ``train``. A metric that is null has no row. Sets are in the order of the files.
    """
    import pandas as pd

    rows = [
        (group.name, seed, str(run.path), kind, name, subset, metric, value)
        for group in groups
        for seed, run in group.runs.items()
        for kind, name, entry in _entries(run.metrics)
        for subset, figures in {"": entry, **(entry.get("subsets") or {})}.items()
        for metric, value in _numbers(figures)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _entries(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Kind, set and figures of every set of metrics.json, and of the training."""
    yield "validation", "validation", metrics.get("validation") or {}
    yield from (("ood_validation", name, entry) for name, entry in (metrics.get("ood_validation") or {}).items())
    yield ID, ID, metrics.get(ID) or {}
    yield from ((OOD, name, entry) for name, entry in (metrics.get(OOD) or {}).items())
    yield TRAIN, TRAIN, metrics.get(TRAIN) or {}


def _numbers(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for metric, value in figures.items():
        if metric == "ci95" and value is not None:
            yield from zip(("ci95_low", "ci95_high"), map(float, value), strict=True)
        elif isinstance(value, int | float):
            yield metric, float(value)


def set_kinds(frame: pd.DataFrame) -> dict[str, str]:
    """Every set of a `metrics_frame` with its kind, in the order of tables: sets that select, ID, OOD sets by name."""
    order = (*SELECTING, ID, OOD)
    found = frame.loc[frame["kind"].isin(order), ["kind", "set"]].drop_duplicates()
    kinds = {**dict(zip(found["set"], found["kind"], strict=True)), ID: ID}
    return dict(sorted(kinds.items(), key=lambda each: (order.index(each[1]), each[0])))


def ood_mean_rows(frame: pd.DataFrame, sets: Sequence[str]) -> pd.DataFrame:
    """Rows of the set ``OOD mean``: the unweighted mean over `sets` of every metric that a run has on all of them."""
    import pandas as pd

    own = frame[(frame["kind"] == OOD) & (frame["subset"] == "") & frame["set"].isin(sets)]
    own = own[~own["metric"].isin(["pairs", "ci95_low", "ci95_high"])]
    keys = ["group", "seed", "run", "metric"]
    rows = [
        (*key, float(np.mean(part["value"].to_numpy())))
        for key, part in own.groupby(keys, sort=False)
        if len(part) == len(sets)
    ]
    means = pd.DataFrame(rows, columns=[*keys, "value"])
    return means.assign(kind=OOD_MEAN_KIND, set=OOD_MEAN, subset="")[list(COLUMNS)]


def correct_frame(group: Group, name: str) -> pd.DataFrame | None:
    """Which pairs of a set the group's runs get right: 1.0 or 0.0, without the pairs that accuracy leaves out.

    Returns:
        One column for each seed that was evaluated on the set. One row for each pair that all of these have, known by
        its id, its prompt and, if a comparison has several pairs, its position among them. None if no run was
        evaluated, or the runs have no pair in common.

    Raises:
        UserError: a file of predictions is missing or broken.
    """
    import pandas as pd

    found = {
        seed: _correct(columns) for seed, run in group.runs.items() if (columns := _predictions(run, name)) is not None
    }
    if not found:
        return None
    first, *others = found.values()
    index = first.index
    for each in others:
        index = _common(index, each.index)
    return pd.DataFrame({seed: each.reindex(index) for seed, each in found.items()}) if len(index) else None


def _predictions(run: Run, name: str) -> Columns | None:
    return run.predictions(name) or None


def _correct(columns: Columns) -> pd.Series:
    """Right or wrong for each pair of a predictions file, by id, prompt and position."""
    import pandas as pd

    kept = counted(columns["target"])
    correct = right(columns["chosen_reward"] - columns["rejected_reward"], columns["target"])[kept]
    keys = pd.DataFrame({"id": columns["id"][kept], "prompt": columns["prompt"][kept]})
    keys["position"] = keys.groupby(["id", "prompt"], sort=False, dropna=False).cumcount()
    return pd.Series(correct.astype(np.float64), index=pd.MultiIndex.from_frame(keys))


def _common(index: pd.MultiIndex, other: pd.MultiIndex) -> pd.MultiIndex:
    """The pairs of `index` that `other` has as well, in their order."""
    return index if index.equals(other) else index[index.isin(other)]


def paired(frame: pd.DataFrame | None, first: pd.DataFrame | None) -> pd.DataFrame | None:
    """The differences to `first`, on the seeds and pairs that both have; None if one of them is None."""
    if frame is None or first is None:
        return None
    seeds, index = [seed for seed in frame.columns if seed in first.columns], _common(frame.index, first.index)
    return frame.reindex(index)[seeds] - first.reindex(index)[seeds]
