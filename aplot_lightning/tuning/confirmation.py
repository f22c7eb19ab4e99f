"""The chosen config and the baselines, trained again with seeds that selected nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from aplot_lightning.errors import RunError
from aplot_lightning.tuning.comparison import Comparison, Task
from aplot_lightning.tuning.fit_config import is_single_process, lean_checkpoints
from aplot_lightning.tuning.grid import Cell, Setting
from aplot_lightning.tuning.processes import Launcher


def retrain(
    groups: Mapping[str, Path],
    seeds: Sequence[int],
    folder: Path,
    *,
    workers: int = 1,
    devices: Sequence[int | list[int]] | None = None,
) -> dict[str, list[Path]]:
    """Trains every group with every seed in ``folder/GROUP/seedK``, except what is done.

    A run whose config or data have changed is run again; one that was killed resumes from its checkpoint.

    Args:
        groups: by name, a whole config that `fit` takes.
        seeds: seed_everything of the runs of each group.
        folder: of the runs.
        workers: how many at a time.
        devices: CUDA devices of each; by default all that there are, spread evenly.

    Returns:
        For each group its run directories, in the order of the seeds.

    Raises:
        RunError: a run failed; the others are kept for the next call.
    """
    # best.yaml is what trains a model to keep; these runs are for their figures
    configs = {name: yaml.safe_load(path.read_bytes()) for name, path in groups.items()}
    overrides = {name: {"checkpoint_keep": 0, **lean_checkpoints(config)} for name, config in configs.items()}
    cells = [
        Cell(Setting(), name, seed, folder / name / f"seed{seed}", (path,), overrides[name])
        for seed in seeds
        for name, path in groups.items()
    ]
    tasks = [_task(cell) for cell in cells]
    try:
        with Launcher(preload=all(map(is_single_process, configs.values()))) as launcher:
            Comparison(tasks, workers, _log, devices).run(launcher)
    except RunError as error:
        raise RunError(f"confirmation: {error}") from error
    failed = next((task for task in tasks if task.reason), None)
    if failed is not None:
        raise RunError(
            f"confirmation: {failed.cell} failed: {failed.reason} (log: {failed.log}); fix that and "
            "run tune again: what is done is kept"
        )
    return {name: [folder / name / f"seed{seed}" for seed in seeds] for name in groups}


def _task(cell: Cell) -> Task:
    task = Task.of(cell)
    if task.state == "again":  # nothing of another config's run may stay, whenever this process dies
        shutil.rmtree(cell.run_dir)
        task = Task.of(cell)
    return task


def _log(line: str) -> None:
    print(f"confirmation {line}", file=sys.stderr, flush=True)  # noqa: T201
