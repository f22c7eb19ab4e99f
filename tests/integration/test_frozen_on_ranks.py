"""A head on a frozen backbone under DDP and FSDP2: the run of one process, and embeddings that ranks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aplot_lightning.model.embedding_cache import EmbeddingCache

pytestmark = pytest.mark.stress
FSDP = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
RANKS = {"ddp": "ddp", "fsdp": FSDP}


def head(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_ranks_train_the_head_of_one_process(laboratory: Any, tmp_path: Path, name: str) -> None:
    options = {
        "objective": "aplot",
        "model.freeze_backbone": True,
        "data.batch_size": 31,  # uneven over two ranks
        "data.cache_dir": str(tmp_path / "cache"),
        "data.ood": {},
        "trainer.max_steps": 3,
    }
    laboratory.on_two_ranks(tmp_path / "ranks", {**options, "trainer.strategy": RANKS[name]})
    with pytest.MonkeyPatch.context() as patch:
        # what ranks left is found by one process: keys do not depend on how weights are held
        patch.setattr(EmbeddingCache, "_compute", lambda *_: pytest.fail("the backbone ran"))
        assert laboratory("fit", tmp_path / "one", options) == 0
    torch.testing.assert_close(head(tmp_path / "ranks"), head(tmp_path / "one"), rtol=0, atol=1e-5)


def test_sharded_ranks_train_it_without_the_cache(laboratory: Any, tmp_path: Path) -> None:
    options = {"model.freeze_backbone": True, "model.cache_embeddings": False, "data.ood": {}, "trainer.max_steps": 3}
    laboratory.on_two_ranks(tmp_path / "ranks", {**options, "trainer.strategy": FSDP})
    assert laboratory("fit", tmp_path / "one", options) == 0
    torch.testing.assert_close(head(tmp_path / "ranks"), head(tmp_path / "one"), rtol=0, atol=1e-5)
