"""What many tests do with runs: disturb them, read what they left, and train in a plain trainer without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Lightning's remarks on its own deprecations and on what a data loader might have
PLAIN = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]


def probe(name: str, **options: Any) -> dict[str, Any]:
    """The option that puts a callback of tests/training/probes.py into a run."""
    return {"trainer.callbacks": [{"class_path": f"tests.training.probes.{name}", "init_args": options}]}


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def curve(run_dir: Path, tag: str) -> dict[int, float]:
    """Step -> value of a TensorBoard tag."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {point.step: point.value for point in events.Scalars(tag)}


def plain_trainer(folder: Path, **options: Any) -> L.Trainer:
    """Lightning's own trainer, quiet, on one CPU, training only; options beside and over that."""
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    fixed = {"accelerator": "cpu", "devices": 1, "use_distributed_sampler": False, "limit_val_batches": 0}
    return L.Trainer(**{**quiet, **fixed, "default_root_dir": folder, **options})
