"""Reading a run directory: what docs/interface.md says is in it, and nothing of how it was made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.report.tables import one_line

Columns = dict[str, NDArray[Any]]

NEEDED = ("metrics.json", "config.yaml", "run.json")


@dataclass(frozen=True)
class Run:
    """A finished run, read from its directory.

    Attributes:
        path: the run directory.
        metrics: metrics.json.
        config: config.yaml.
        record: run.json: command, commit, versions, hardware, data.
    """

    path: Path
    metrics: dict[str, Any]
    config: dict[str, Any]
    record: dict[str, Any]

    @property
    def ood_sets(self) -> list[str]:
        """Names of the OOD test sets, in the order of the config."""
        return list(self.metrics.get("ood") or {})

    def predictions(self, name: str) -> Columns | None:
        """Columns of predictions/NAME.parquet, (n,) each; None if the set was not evaluated.

        Raises:
            UserError: the set has an accuracy but its file is missing or is no Parquet file.
        """
        path = self.path / "predictions" / f"{name}.parquet"
        entry = self.metrics.get(name) or self.metrics.get("ood", {}).get(name) or {}
        if not path.is_file():
            if entry.get("accuracy") is None:
                return None
            raise UserError(f"{path} is missing though metrics.json has its accuracy; write it again by `test`")
        return _read_parquet(path)

    def margins(self) -> Columns | None:
        """Columns of diagnostics/margins.parquet (step, margin, similarity, cost, gap); None without the file."""
        path = self.path / "diagnostics" / "margins.parquet"
        return _read_parquet(path) if path.is_file() else None

    def errors(self) -> list[dict[str, Any]]:
        """Rows of errors.jsonl, worst first; none without the file."""
        path = self.path / "errors.jsonl"
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: texts may hold U+2028
        try:
            return [json.loads(line) for line in lines if line.strip()]
        except ValueError as error:
            raise UserError(f"{path} is not JSON lines ({error}); write it again by `test`") from None

    def scalars(self, tags: Sequence[str]) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Steps and values of TensorBoard tags, sorted by step; if a step was logged twice, the later value counts.

        Tags without a value are left out.
        """
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        points: dict[str, dict[int, tuple[float, float]]] = {}
        for folder in sorted({path.parent for path in self.path.rglob("events.out.tfevents.*")}):
            events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})  # 0 keeps every point
            events.Reload()
            for tag in set(tags) & set(events.Tags()[SCALARS]):
                known = points.setdefault(tag, {})
                for event in events.Scalars(tag):
                    if event.step not in known or event.wall_time >= known[event.step][0]:
                        known[event.step] = (event.wall_time, event.value)
        curves = {}
        for tag in (tag for tag in tags if tag in points):
            steps = np.array(sorted(points[tag]), dtype=np.int64)
            curves[tag] = steps, np.array([points[tag][step][1] for step in steps.tolist()], dtype=np.float64)
        return curves


def read_run(run_dir: str | Path) -> Run:
    """Reads a run directory.

    Raises:
        UserError: there is no such folder, it is not a (finished) run directory, or one of its files is broken; the
            message names what is missing.
    """
    path = Path(run_dir)
    if not path.is_dir():
        found = "a file" if path.exists() else "not there"
        raise UserError(f"{path} is {found}; give a run directory, the folder that `fit` wrote (--run_dir)")
    missing = [name for name in NEEDED if not (path / name).is_file()]
    if missing:
        unfinished = (path / "config.yaml").is_file()
        fix = "finish its fit (--ckpt_path last)" if unfinished else "give the folder that `fit` wrote (--run_dir)"
        raise UserError(f"{path} is not a finished run: it has no {', '.join(missing)}; {fix}")
    return Run(path, _mapping(path / "metrics.json"), _mapping(path / "config.yaml"), _mapping(path / "run.json"))


def run_labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: the last parts of its path, as many as it takes to distinguish the runs."""
    parts = [run.path.resolve().parts for run in runs]
    count = 1
    while len({names[-count:] for names in parts}) < len(set(parts)):
        count += 1
    return ["/".join(names[-count:]) for names in parts]


def _mapping(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); write it again by `test` or `fit`") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold keys and values; write it again by `test` or `fit`")
    return content


def _read_parquet(path: Path) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is not a Parquet file ({one_line(error)}); write it again by `test` or `fit`"
        ) from None
    return {name: table.column(name).to_numpy() for name in table.column_names}
