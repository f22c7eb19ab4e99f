"""A head on a frozen backbone under DDP and FSDP2: the run of one process, and embeddings that ranks share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
FSDP = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
RANKS = {"ddp": "ddp", "fsdp": FSDP}


def launch(laboratory: Any, run_dir: Path, options: dict[str, Any]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {key: value for key, value in os.environ.items() if key != "APLOT_RUN_DIR"}
    done = subprocess.run(
        [*launcher, "-m", "aplot_lightning", *laboratory.words("fit", run_dir, options)],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=laboratory.folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def head(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", RANKS)
def test_ranks_train_the_head_of_one_process(laboratory: Any, tmp_path: Path, name: str) -> None:
    options = {
        "objective": "aplot",
        "model.freeze_backbone": True,
        "data.batch_size": 31,  # uneven over two ranks
        "trainer.max_steps": 8,
    }
    assert laboratory("fit", tmp_path / "one", {**options, "data.cache_dir": str(tmp_path / "one cache")}) == 0
    shared = {
        **options,
        "trainer.devices": 2,
        "trainer.strategy": RANKS[name],
        "data.cache_dir": str(tmp_path / "cache"),
    }
    launch(laboratory, tmp_path / "cold", shared)
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "embeddings").rglob("embeddings.bin")}
    assert len(entries) == len(list((tmp_path / "one cache" / "embeddings").rglob("embeddings.bin")))
    launch(laboratory, tmp_path / "warm", shared)
    assert {path: path.stat().st_mtime_ns for path in entries} == entries
    for found in ("cold", "warm"):
        torch.testing.assert_close(head(tmp_path / found), head(tmp_path / "one"), rtol=0, atol=1e-5)
    # an entry is the same whoever made it: keys do not depend on how weights are held
    names = {path.parent.name for path in entries}
    assert names == {path.parent.name for path in (tmp_path / "one cache" / "embeddings").rglob("embeddings.bin")}
    if name == "fsdp":  # without the cache too
        launch(laboratory, tmp_path / "plain", {**shared, "model.cache_embeddings": False})
        torch.testing.assert_close(head(tmp_path / "plain"), head(tmp_path / "one"), rtol=0, atol=1e-5)
