"""A head on a frozen backbone under DDP and FSDP2: the run of one process, and embeddings that ranks share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aplot_lightning.model.embedding_cache import EmbeddingCache

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
        "data.cache_dir": str(tmp_path / "cache"),
        "trainer.max_steps": 5,
    }
    launch(laboratory, tmp_path / "ranks", {**options, "trainer.devices": 2, "trainer.strategy": RANKS[name]})
    with pytest.MonkeyPatch.context() as patch:
        # what ranks left is found by one process: keys do not depend on how weights are held
        patch.setattr(EmbeddingCache, "_compute", lambda *_: pytest.fail("the backbone ran"))
        assert laboratory("fit", tmp_path / "one", options) == 0
    torch.testing.assert_close(head(tmp_path / "ranks"), head(tmp_path / "one"), rtol=0, atol=1e-5)


def test_sharded_ranks_train_it_without_the_cache(laboratory: Any, tmp_path: Path) -> None:
    options = {"model.freeze_backbone": True, "model.cache_embeddings": False, "data.ood": {}, "trainer.max_steps": 5}
    launch(laboratory, tmp_path / "ranks", {**options, "trainer.devices": 2, "trainer.strategy": FSDP})
    assert laboratory("fit", tmp_path / "one", options) == 0
    torch.testing.assert_close(head(tmp_path / "ranks"), head(tmp_path / "one"), rtol=0, atol=1e-5)
