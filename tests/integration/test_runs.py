"""Runs that are stopped, resumed, poisoned and used again, by the real command line."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from aplot_lightning import RewardModel
from tests.runs import checkpoint, curve, probe


def figures(run_dir: Path) -> dict[str, Any]:
    """metrics.json without times."""
    content = json.loads((run_dir / "metrics.json").read_text())
    content["train"] = {name: content["train"][name] for name in ("steps", "pairs")}
    return content


def assert_same_run(run_dir: Path, undisturbed: Path) -> None:
    """To the bit: last weights, best step, every logged loss and validation, and the figures."""
    for name in ("last", "best"):
        expected, found = checkpoint(undisturbed, name), checkpoint(run_dir, name)
        assert found["global_step"] == expected["global_step"], name
        torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
    for tag in ("validation/accuracy", "ood/hard/log_loss"):
        assert curve(run_dir, tag) == curve(undisturbed, tag), tag
    # SIGTERM may cost the point of the step after which the run stopped
    found, expected = curve(run_dir, "train/loss"), curve(undisturbed, "train/loss")
    assert len(found) >= len(expected) - 1
    assert found.items() <= expected.items()
    assert figures(run_dir) == figures(undisturbed)


# Resuming. `undisturbed_run` has 10 steps in 2 epochs, and validations after steps 3, 8 and 10.


@pytest.mark.parametrize(
    ("every", "stop", "kept", "workers"),
    [
        (4, {"step": 8, "in_validation": True}, 4, 0),  # an unfinished validation is repeated
        (5, {"step": 10, "in_validation": True}, 8, 0),  # also the one that ends the run
        pytest.param(2, {"step": 5}, 4, 0, marks=pytest.mark.stress),
        pytest.param(3, {"step": 7}, 6, 2, marks=pytest.mark.stress),
        pytest.param(1, {"step": 5}, 5, 0, marks=pytest.mark.stress),  # between two epochs
    ],
    ids=str,
)
def test_a_crashed_run_resumes_to_the_bit(
    laboratory, undisturbed_run: Path, tmp_path: Path, every: int, stop: dict[str, Any], kept: int, workers: int
) -> None:
    options = {**laboratory.resumable, "checkpoint_every_n_steps": every, "data.num_workers": workers}
    with pytest.raises(MemoryError):
        laboratory("fit", tmp_path / "run", {**options, **probe("Interrupt", **stop)})
    assert checkpoint(tmp_path / "run")["global_step"] == kept
    assert laboratory("fit", tmp_path / "run", {**options, "ckpt_path": "last"}) == 0
    assert_same_run(tmp_path / "run", undisturbed_run)


# before, at and after the ends of epochs and validations; SIGUSR1 is SLURM's warning
@pytest.mark.parametrize(
    ("step", "how"),
    [
        (2, "SIGTERM"),
        (4, "SIGUSR1"),
        (9, "SIGINT"),
        *[pytest.param(*case, marks=pytest.mark.stress) for case in [(3, "SIGTERM"), (7, "SIGTERM"), (6, "SIGINT")]],
    ],
)
def test_a_signal_keeps_the_finished_step(
    laboratory, undisturbed_run: Path, tmp_path: Path, step: int, how: str
) -> None:
    stopped = probe("Interrupt", step=step, how=how)
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in signals]
    code = 130 if how == "SIGINT" else 143
    assert laboratory("fit", tmp_path / "run", {**laboratory.resumable, **stopped}) == code
    assert [signal.getsignal(number) for number in signals] == before
    assert checkpoint(tmp_path / "run")["global_step"] == step + 1
    assert laboratory("fit", tmp_path / "run", {**laboratory.resumable, "ckpt_path": "last"}) == 0
    assert_same_run(tmp_path / "run", undisturbed_run)


@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.stress)])
def test_a_signal_in_a_validation_takes_effect_after_it(
    laboratory, undisturbed_run: Path, tmp_path: Path, how: str, code: int
) -> None:
    stopped = probe("Interrupt", step=3, how=how, in_validation=True)
    assert laboratory("fit", tmp_path / "run", {**laboratory.resumable, **stopped}) == code
    assert laboratory("fit", tmp_path / "run", {**laboratory.resumable, "ckpt_path": "last"}) == 0
    assert_same_run(tmp_path / "run", undisturbed_run)


@pytest.mark.parametrize(
    "stop", [{"step": 7}, pytest.param({"step": 8, "in_validation": True}, marks=pytest.mark.stress)], ids=str
)
def test_a_second_ctrl_c_ends_the_run_at_once_and_keeps_the_previous_checkpoint(
    laboratory, undisturbed_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture, stop: dict[str, Any]
) -> None:
    options = {**laboratory.resumable, "checkpoint_every_n_steps": 3}
    one = probe("Interrupt", how="SIGINT", **stop)["trainer.callbacks"]
    before = signal.getsignal(signal.SIGINT)
    assert laboratory("fit", tmp_path / "run", {**options, "trainer.callbacks": [*one, *one]}) == 130
    assert signal.getsignal(signal.SIGINT) == before
    said = capfd.readouterr().err
    assert said.count("ctrl-C again stops at once") == 1
    assert said.splitlines()[-1] == "aplot: interrupted"
    assert checkpoint(tmp_path / "run")["global_step"] == 6
    assert laboratory("fit", tmp_path / "run", {**options, "ckpt_path": "last"}) == 0
    assert_same_run(tmp_path / "run", undisturbed_run)


@pytest.mark.stress
def test_processes_that_are_killed_or_stopped(laboratory, undisturbed_run: Path, tmp_path: Path) -> None:
    """Real signals to real processes; those that stop a run to loader workers too, which leave them to it."""
    options = {**laboratory.resumable, "checkpoint_every_n_steps": 2}
    names = {"SIGKILL": (-signal.SIGKILL, 0, 4), "group SIGTERM": (143, 2, 6), "group SIGINT": (130, 2, 6)}
    processes = {
        name: laboratory.start(
            "fit", tmp_path / name, {**options, "data.num_workers": workers, **probe("Interrupt", step=5, how=name)}
        )
        for name, (_, workers, _) in names.items()
    }
    for name, (code, _, kept) in names.items():
        _, said = processes[name].communicate(timeout=300)
        assert processes[name].returncode == code, said
        assert "Traceback" not in said
        assert checkpoint(tmp_path / name)["global_step"] == kept
        assert laboratory("fit", tmp_path / name, {**options, "ckpt_path": "last"}) == 0
        assert_same_run(tmp_path / name, undisturbed_run)


def test_a_run_that_was_moved_remembers_its_best(laboratory, undisturbed_run: Path, tmp_path: Path) -> None:
    options = {**laboratory.resumable, "checkpoint_every_n_steps": 1}
    with pytest.raises(MemoryError):
        laboratory("fit", tmp_path / "run", {**options, **probe("Interrupt", step=9)})
    assert checkpoint(tmp_path / "run", "best")["global_step"] < 9
    (tmp_path / "run").rename(tmp_path / "moved")
    assert laboratory("fit", tmp_path / "moved", {**options, "ckpt_path": "last"}) == 0
    assert_same_run(tmp_path / "moved", undisturbed_run)


def test_a_finished_run_that_is_resumed_keeps_its_figures(laboratory, undisturbed_run: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(undisturbed_run, tmp_path / "run")
    assert laboratory("fit", run_dir, {**laboratory.resumable, "ckpt_path": "last"}) == 0
    assert figures(run_dir) == figures(undisturbed_run)


# Ends


def test_max_steps_in_mid_epoch_ends_with_a_validation(laboratory, tmp_path: Path) -> None:
    assert laboratory("fit", tmp_path / "run", {"trainer.max_steps": 5, "data.ood": {}}) == 0
    assert list(curve(tmp_path / "run", "validation/accuracy")) == [4]
    assert checkpoint(tmp_path / "run")["global_step"] == checkpoint(tmp_path / "run", "best")["global_step"] == 5


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        ({"step": 4, "how": "SIGTERM"}, 5),
        pytest.param({"step": 5, "how": "SIGTERM", "in_validation": True}, 5, marks=pytest.mark.stress),
        ({"step": 5, "in_validation": True}, 4),  # no checkpoint of the last step, whose validation is still due
    ],
    ids=str,
)
def test_a_run_that_is_stopped_at_max_steps_still_has_its_last_validation(
    laboratory, tmp_path: Path, stop: dict[str, Any], kept: int
) -> None:
    options = {"trainer.max_steps": 5, "checkpoint_every_n_steps": 1, "data.ood": {}}
    stopped = {**options, **probe("Interrupt", **stop)}
    if "how" in stop:
        assert laboratory("fit", tmp_path / "run", stopped) == 143
    else:
        with pytest.raises(MemoryError):
            laboratory("fit", tmp_path / "run", stopped)
    assert checkpoint(tmp_path / "run")["global_step"] == kept
    assert laboratory("fit", tmp_path / "run", {**options, "ckpt_path": "last"}) == 0
    assert list(curve(tmp_path / "run", "validation/accuracy")) == [4]
    assert checkpoint(tmp_path / "run")["global_step"] == checkpoint(tmp_path / "run", "best")["global_step"] == 5


@pytest.mark.parametrize(("rate", "kept"), [(1e30, None), (3e-3, 4)])
def test_a_run_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    laboratory, tmp_path: Path, capsys: pytest.CaptureFixture, rate: float, kept: int | None
) -> None:
    options = {"objective": "aplot", "model.learning_rate": rate, "checkpoint_every_n_steps": 2, "data.ood": {}}
    poison = probe("Poison", step=5) if kept else {}
    assert laboratory("fit", tmp_path / "run", {**options, **poison}) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("aplot: ")]
    assert len(said) == 1
    assert "step" in said[0]
    assert "learning rate" in said[0]
    if kept:
        assert "step 6" in said[0]
        assert checkpoint(tmp_path / "run")["global_step"] == kept
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values())
    if kept:
        assert laboratory("fit", tmp_path / "run", {**options, "ckpt_path": "last", "trainer.max_steps": 6}) == 0


# Using a run


def test_test_writes_the_same_figures_again_and_keeps_those_of_training(
    laboratory, finished_run: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(finished_run, tmp_path / "run")
    kept = json.loads((run_dir / "metrics.json").read_text())
    shutil.rmtree(run_dir / "predictions")
    assert laboratory("test", run_dir, {**laboratory.whole, "ckpt_path": "best"}) == 0
    assert json.loads((run_dir / "metrics.json").read_text()) == kept
    assert (run_dir / "predictions" / "hard.parquet").is_file()
    assert laboratory("test", run_dir, {**laboratory.whole, "ckpt_path": "last"}) == 0
    assert json.loads((run_dir / "metrics.json").read_text())["train"] == kept["train"]


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_validate_and_predict_leave_the_run_as_it_is(
    laboratory, undisturbed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, command: str
) -> None:
    run_dir = shutil.copytree(undisturbed_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    name = "best" if command == "validate" else str(run_dir / "checkpoints" / "last.ckpt")
    assert laboratory(command, run_dir, {**laboratory.resumable, "ckpt_path": name}) == 0
    assert {path: path.read_bytes() for path in before} == before
    if command == "validate":
        assert "validation/accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_missing_checkpoint_is_a_mistake(laboratory, tmp_path: Path, command: str) -> None:
    assert laboratory(command, tmp_path / "run", {"ckpt_path": "best"}) == 2
    assert not (tmp_path / "run").exists()


def test_init_from_starts_from_a_runs_weights(laboratory, finished_run: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing, the new run ends where the old one's best checkpoint stands."""
    options = {"init_from": str(finished_run), "model.learning_rate": 1e-30, "trainer.max_steps": 1}
    assert laboratory("fit", tmp_path / "run", {**options, "trainer.limit_val_batches": 0}) == 0
    started, best = checkpoint(tmp_path / "run"), checkpoint(finished_run, "best")
    assert started["global_step"] == 1
    torch.testing.assert_close(started["state_dict"], best["state_dict"], rtol=0, atol=1e-20)
    items = [{"prompt": "How many in all?", "response": "4"}]
    scores = [RewardModel.from_pretrained(str(run)).score(items) for run in (tmp_path / "run", finished_run)]
    assert scores[0] == scores[1]
