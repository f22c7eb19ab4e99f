"""What a machine does to a run: one line, the right exit code, and a checkpoint to go on from."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from aplot_lightning.training.run_directory import lock_run, unlock_runs
from tests.runs import checkpoint, curve, probe

SHORT = {"trainer.max_steps": 6, "data.ood": {}, "checkpoint_every_n_steps": 1, "checkpoint_keep": 9}


def after(run_dir: Path, step: int) -> dict[str, Any]:
    """The checkpoint of a step."""
    last = checkpoint(run_dir)
    return last if last["global_step"] == step else checkpoint(run_dir, f"step-{step:08}")


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    (line,) = (line for line in printed.err.splitlines() if line.startswith("aplot: "))
    assert "Traceback" not in printed.err + printed.out
    return line


# Not finite


@pytest.mark.parametrize(("objective", "where"), [("aplot", "rewards"), ("bt", "gradient")], ids=str)
def test_a_skipped_step_leaves_everything_as_it_was(laboratory, tmp_path: Path, objective: str, where: str) -> None:
    options = {**SHORT, "objective": objective, "model.on_not_finite": "skip", "trainer.gradient_clip_val": 1.0}
    run_dir = tmp_path / "run"
    assert laboratory("fit", run_dir, {**options, **probe("BadSteps", steps=[2, 3], where=where)}) == 0
    before, skipped, taken = after(run_dir, 2), after(run_dir, 4), after(run_dir, 5)
    torch.testing.assert_close(skipped["state_dict"], before["state_dict"], rtol=0, atol=0)
    states = [at["optimizer_states"][0]["state"] for at in (skipped, before)]
    assert states[0]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert skipped["not_finite"] == {"skipped": 2, "in_a_row": 2}
    assert taken["not_finite"] == {"skipped": 2, "in_a_row": 0}
    key = "reward_model.head.weight"
    assert (taken["state_dict"][key] - skipped["state_dict"][key]).abs().max() > 0
    assert all(tensor.isfinite().all() for tensor in checkpoint(run_dir)["state_dict"].values())
    assert curve(run_dir, "train/skipped_steps") == {0: 0, 1: 0, 2: 1, 3: 2, 4: 2, 5: 2}


def test_a_queue_forgets_a_skipped_step(laboratory, tmp_path: Path) -> None:
    """The queue takes rewards in before the loss is known; a NaN that stayed in it would spoil the next steps too."""
    queue = {"model.objective.margin.support": "queue", "model.objective.margin.queue_size": 40}
    options = {**SHORT, **queue, "objective": "aplot", "model.on_not_finite": "skip"}
    assert laboratory("fit", tmp_path / "run", {**options, **probe("BadSteps", steps=[2])}) == 0
    before, skipped = (after(tmp_path / "run", step)["state_dict"] for step in (2, 3))
    for name in ("rewards", "embeddings", "count"):
        key = f"objective.margin.queue.{name}"
        torch.testing.assert_close(skipped[key], before[key], rtol=0, atol=0)
    assert after(tmp_path / "run", 6)["not_finite"]["skipped"] == 1


def test_too_many_skipped_steps_in_a_row_stop_the_run(laboratory, tmp_path: Path, capsys) -> None:
    options = {**SHORT, "model.on_not_finite": "skip", "model.skip_at_most": 2}
    assert laboratory("fit", tmp_path / "run", {**options, **probe("BadSteps", steps=[1, 2, 3])}) == 1
    line = only_line(capsys)
    assert "step 4: the loss is not finite" in line
    assert "2 steps before it were skipped" in line
    assert checkpoint(tmp_path / "run")["global_step"] == 3
    # it goes on from there, and still knows how many it skipped
    assert laboratory("fit", tmp_path / "run", {**options, "ckpt_path": "last"}) == 0
    assert checkpoint(tmp_path / "run")["not_finite"] == {"skipped": 2, "in_a_row": 0}


@pytest.mark.parametrize("where", ["rewards", "gradient"])
def test_by_default_the_run_stops(laboratory, tmp_path: Path, capsys, where: str) -> None:
    assert laboratory("fit", tmp_path / "run", {**SHORT, **probe("BadSteps", steps=[3], where=where)}) == 1
    line = only_line(capsys)
    assert f"step 4: {'a gradient' if where == 'gradient' else 'the loss'} is not finite" in line
    assert "--model.on_not_finite skip" in line
    assert checkpoint(tmp_path / "run")["global_step"] == 3


# Memory and disk


@pytest.mark.parametrize(("key", "value", "pairs"), [("micro_batch_size", 8, 8), ("micro_batch_tokens", 2000, None)])
def test_out_of_memory_says_which_micro_batch_and_what_to_set(
    laboratory, tmp_path: Path, capsys, key: str, value: int, pairs: int | None
) -> None:
    options = {**SHORT, "data.micro_batch_size": 8, f"data.{key}": value}
    assert laboratory("fit", tmp_path / "run", {**options, **probe("NoMemory", step=2)}) == 1
    line = only_line(capsys)
    said = re.search(
        r"step 3, rank 0: out of memory in a micro-batch of (\d+) pairs, (\d+) conversations of up to", line
    )
    assert said, line
    assert int(said[2]) == 2 * int(said[1])
    assert int(said[1]) == (pairs or int(said[1]))
    assert f"data.{key} (now {value})" in line
    assert "model.gradient_checkpointing" in line
    assert checkpoint(tmp_path / "run")["global_step"] == 2


def test_a_full_disk_leaves_the_former_checkpoint(laboratory, tmp_path: Path, capsys) -> None:
    options = SHORT
    assert laboratory("fit", tmp_path / "run", {**options, **probe("SmallDisk", step=3, size=60_000)}) == 1
    line = only_line(capsys)
    assert "step 4: " in line
    assert "last.ckpt could not be written (File too large)" in line
    assert "--ckpt_path last" in line
    assert checkpoint(tmp_path / "run")["global_step"] == 3
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert laboratory("fit", tmp_path / "run", {**options, "ckpt_path": "last"}) == 0
    assert checkpoint(tmp_path / "run")["global_step"] == 6


# Processes that die


# the loader's SIGCHLD handler may raise between opening a checkpoint's file and the `with` that closes it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dead_worker_is_one_line(laboratory, tmp_path: Path, capsys) -> None:
    options = {**SHORT, "data.num_workers": 2, **probe("KillWorkers", step=2)}
    assert laboratory("fit", tmp_path / "run", options) == 1
    line = only_line(capsys)
    assert "a process that prepares batches died" in line
    assert "data.num_workers" in line


def test_a_rank_says_that_another_one_died(laboratory, tmp_path: Path) -> None:
    options = {**SHORT, "trainer.strategy": "ddp", **probe("KillRank", step=2, rank=1)}
    output = laboratory.on_two_ranks(tmp_path / "run", options, codes=(1, -signal.SIGKILL))
    assert "step 3: rank 0 lost another rank" in output
    assert "--ckpt_path last" in output
    assert "Traceback" not in output
    assert checkpoint(tmp_path / "run")["global_step"] == 2


@pytest.mark.stress
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_of_lightnings_launcher_end_when_another_one_dies(laboratory, tmp_path: Path, rank: int) -> None:
    options = {**SHORT, "trainer.devices": 2, "trainer.strategy": "ddp", **probe("KillRank", step=2, rank=rank)}
    process = laboratory.start("fit", tmp_path / "run", options)
    _, said = process.communicate(timeout=200)  # of both: they share it
    assert process.returncode in ({1} if rank else {-9})
    assert f"rank {1 - rank} lost another rank" in said
    assert "--ckpt_path last" in said
    assert "Traceback" not in said
    assert checkpoint(tmp_path / "run")["global_step"] == 2


@pytest.mark.stress
def test_a_rank_that_stops_answering_ends_the_others_within_the_timeout(laboratory, tmp_path: Path) -> None:
    """Two nodes of one rank each, started by hand; the second stops in its tracks, its connections open."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"timeout": "0:00:08"}}
    options = {
        **SHORT,
        "trainer.num_nodes": 2,
        "trainer.strategy": strategy,
        **probe("KillRank", step=2, rank=1, how="SIGSTOP"),
    }
    ranks = []
    for number in range(2):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**place, "NODE_RANK": str(number)}.items():
                patch.setenv(name, value)
            ranks.append(laboratory.start("fit", tmp_path / "run", options))
    try:
        _, said = ranks[0].communicate(timeout=100)
    finally:
        ranks[1].kill()
    ranks[1].communicate()
    assert ranks[1].returncode == -signal.SIGKILL  # it was still there
    assert ranks[0].returncode == 1
    assert "step 3: rank 0 lost another rank, which died or did not answer in time" in said
    assert "Traceback" not in said
    assert checkpoint(tmp_path / "run")["global_step"] == 2


# The run directory


@pytest.mark.parametrize("place", ["/proc/aplot-run", "/dev/null/run"])
def test_a_run_directory_that_cannot_be_written_is_a_mistake(laboratory, capsys, place: str) -> None:
    assert laboratory("fit", Path(place), SHORT) == 2
    assert "run_dir: " in only_line(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_run_directory_is_a_mistake(laboratory, tmp_path: Path, capsys) -> None:
    tmp_path.chmod(0o500)
    assert laboratory("fit", tmp_path / "run", SHORT) == 2
    assert "read-only" in only_line(capsys)
    tmp_path.chmod(0o700)


def test_two_runs_in_one_directory_are_refused(laboratory, tmp_path: Path, capsys) -> None:
    run_dir = tmp_path / "run"
    lock_run(run_dir)
    try:
        assert laboratory("fit", run_dir, SHORT) == 2
    finally:
        unlock_runs()
    line = only_line(capsys)
    assert f"run_dir: {run_dir} is in use by another run (process {os.getpid()} on " in line
    assert not (run_dir / "checkpoints").exists()
    # the file that is left is no lock
    assert (run_dir / ".lock").exists()
    assert laboratory("fit", run_dir, SHORT) == 0


def test_the_lock_is_free_again_after_a_run_that_failed(laboratory, tmp_path: Path, capsys) -> None:
    assert laboratory("fit", tmp_path / "run", {**SHORT, **probe("BadSteps", steps=[3])}) == 1
    lock_run(tmp_path / "run")
    unlock_runs()
