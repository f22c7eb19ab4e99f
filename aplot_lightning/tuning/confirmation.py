"""The chosen config and the baselines, trained again with seeds that selected nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from aplot_lightning.errors import RunError
from aplot_lightning.tuning.comparison import LOG, Comparison, Task
from aplot_lightning.tuning.grid import Cell, Setting
from aplot_lightning.tuning.launch import Launcher
from aplot_lightning.tuning.trial import lean_checkpoints


def retrain(
    groups: Mapping[str, Path],
    seeds: Sequence[int],
    folder: Path,
    launcher: Launcher,
    *,
    workers: int = 1,
    devices: Sequence[int | list[int]] | None = None,
) -> dict[str, list[Path]]:
    """Trains every group with every seed in ``folder/GROUP/seedK``, without what is done already.

    A run whose config or data have changed since is made anew, one that was killed goes on from its checkpoint.

    Args:
        groups: by name, a whole config that `fit` takes.
        seeds: seed_everything of the runs of each group.
        folder: of the runs.
        launcher: starts them.
        workers: how many at a time.
        devices: CUDA devices of each; by default all that there are, spread evenly.

    Returns:
        For each group its run directories, in the order of the seeds.

    Raises:
        RunError: a run ended with an error; the others are kept for the next call.
    """
    # best.yaml is what trains a model to keep; these runs are for their figures
    overrides = {
        name: {"checkpoint_keep": 0, **lean_checkpoints(yaml.safe_load(path.read_bytes()))}
        for name, path in groups.items()
    }
    cells = [
        Cell(Setting(), name, seed, folder / name / f"seed{seed}", (path,), overrides[name])
        for seed in seeds
        for name, path in groups.items()
    ]
    tasks = [_task(cell) for cell in cells]
    try:
        Comparison(tasks, workers, _say, devices).run(launcher)
    except RunError as error:
        raise RunError(f"confirmation: {str(error).replace('run compare again', 'run tune again')}") from error
    failed = next((task for task in tasks if task.reason), None)
    if failed is not None:
        raise RunError(
            f"confirmation: {failed.cell} failed: {failed.reason} (log: {failed.cell.run_dir / LOG}); mend that and "
            "run tune again: what is done is kept"
        )
    return {name: [folder / name / f"seed{seed}" for seed in seeds] for name in groups}


def _task(cell: Cell) -> Task:
    task = Task.of(cell)
    if task.state == "anew":  # nothing of another config's run may be gone on with, whenever this process dies
        shutil.rmtree(cell.run_dir)
        task = Task.of(cell)
    return task


def _say(line: str) -> None:
    print(f"confirmation {line}", file=sys.stderr, flush=True)  # noqa: T201
