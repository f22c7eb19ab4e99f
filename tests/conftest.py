"""Small real runs: pairs of the preference world as JSONL, a tiny decoder from scratch, and the command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # the machine may be busy with other runs
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
SETS = {  # odd sizes, so that ranks get uneven shares
    "train": {"pairs": 331, "seed": 1},
    "hard": {"pairs": 41, "seed": 2, "shift": "hard_pairs"},
    "style": {"pairs": 33, "seed": 2, "shift": "new_style"},
    "topics": {"pairs": 37, "seed": 2, "shift": "new_topics"},
}


@dataclass
class Laboratory:
    """A folder with pairs (`train.jsonl` ...), a `backbone`, and `base.yaml`: 2 epochs of 9 steps, no report."""

    folder: Path

    @property
    def config(self) -> str:
        return str(self.folder / "base.yaml")

    @property
    def whole(self) -> dict[str, Any]:
        """Options of `finished_run`: two passes, dropout, validations in mid-epoch and at the end."""
        return {
            "objective": "aplot",
            "model.dropout": 0.1,
            "data.ood_validation.topics": str(self.folder / "topics.jsonl"),
            "trainer.val_check_interval": 4,
        }

    @property
    def resumable(self) -> dict[str, Any]:
        """Options of `undisturbed_run`: like `whole`, with one test set and 2 epochs of 5 steps."""
        return {
            "objective": "aplot",
            "model.dropout": 0.1,
            "data.ood": {"hard": str(self.folder / "hard.jsonl")},
            "data.batch_size": 64,
            "data.micro_batch_size": 32,
            "trainer.val_check_interval": 3,
        }

    def arguments(self, command: str, run_dir: Path, options: dict[str, Any] | None = None) -> list[str]:
        """The arguments of the command line; objective=NAME takes the file of conf/objective."""
        options = dict(options or {})
        arguments = [command, "--config", options.pop("config", self.config)]
        if (objective := options.pop("objective", None)) is not None:
            arguments += ["--config", str(ROOT / "conf" / "objective" / f"{objective}.yaml")]
        for key, value in options.items():
            arguments += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        return [*arguments, "--run_dir", str(run_dir)]

    def __call__(self, command: str, run_dir: Path, options: dict[str, Any] | None = None) -> int:
        """Runs the command in this process and returns its exit code; a warning that a user would see is an error."""
        from aplot_lightning.cli import main

        with pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore", DeprecationWarning)  # hidden from users, and Lightning's own
            patch.setattr(sys, "argv", ["aplot", *self.arguments(command, run_dir, options)])
            return main()

    def start(
        self, command: str, run_dir: Path, options: dict[str, Any] | None = None, *, torchrun: bool = False
    ) -> subprocess.Popen:
        """Starts the command as a user does, in its own process, or with torchrun in two processes."""
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"] if torchrun else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", *launcher, "aplot_lightning", *self.arguments(command, run_dir, options)],
            env={key: value for key, value in environment.items() if key != "APLOT_RUN_DIR"},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def launch(self, run_dir: Path, options: dict[str, Any]) -> str:
        """Runs `fit` with torchrun, which must succeed. Returns the stderr of both ranks."""
        process = self.start("fit", run_dir, options, torchrun=True)
        try:
            _, output = process.communicate(timeout=300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, output[-3000:]
        return output

    def on_two_ranks(self, run_dir: Path, options: dict[str, Any], codes: tuple[int, int] = (0, 0)) -> str:
        """Runs `fit` in two processes with the environment that torchrun gives, and checks their exit codes.

        Returns the output of both ranks.
        """
        from tests.ranks import run_on_two_ranks

        log = self.folder / f"ranks-{uuid.uuid4().hex}.txt"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
        found = run_on_two_ranks(self.arguments("fit", run_dir, {**options, "trainer.devices": 2}), log, shared)
        output = log.read_text(encoding="utf-8")
        assert tuple(found) == codes, output[-3000:]
        return output


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps prepared data in a temporary folder, also for the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APLOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _as_in_a_terminal() -> Iterator[None]:
    """Handles ctrl-C as in a terminal, also if a shell started the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    from aplot_lightning.data.world import PreferenceWorld, write_world_decoder

    folder = tmp_path_factory.mktemp("laboratory")
    backbone = folder / "backbone"
    write_world_decoder(backbone)
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps({**config, **SIZES, **HEADS}))
    for name, options in SETS.items():
        rows = [json.dumps(row) for _, row in PreferenceWorld(**options).rows()]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    base = {
        "seed_everything": 3,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
        },
        "model": {"backbone": str(backbone), "learning_rate": 3e-3, "warmup_share": 0.1, "weight_decay": 0.01},
        "report": False,
        "data": {
            "train": str(folder / "train.jsonl"),
            "ood": {name: str(folder / f"{name}.jsonl") for name in ("hard", "style")},
            "batch_size": 32,
            "micro_batch_size": 8,
            "max_length": 64,
            "validation_share": 0.1,
            "id_share": 0.1,
        },
    }
    (folder / "base.yaml").write_text(json.dumps(base))  # JSON is YAML
    return Laboratory(folder)


@pytest.fixture(scope="session")
def finished_run(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a whole APLOT run with its report. Do not change it."""
    run_dir = tmp_path_factory.mktemp("runs") / "aplot"
    assert laboratory("fit", run_dir, {**laboratory.whole, "report": True}) == 0
    return run_dir


@pytest.fixture(scope="session")
def undisturbed_run(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of `laboratory.resumable`, for comparison with runs that were stopped and resumed."""
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert laboratory("fit", run_dir, laboratory.resumable) == 0
    return run_dir
