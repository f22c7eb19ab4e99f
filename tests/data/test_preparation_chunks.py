"""Helpers do what one process does, in its order, and what goes wrong in them is said."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aplot_lightning.data.preparation.arrays import Arrays, ArrayWriter
from aplot_lightning.data.preparation.chunks import run
from aplot_lightning.errors import UserError


class Counting:
    """Batch n as its number n % 5 times, and a table of its square."""

    def __call__(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for place in range(start, stop):
            yield {
                "number": np.full(place % 5, place, dtype=np.int32),
                "table": np.full((2, 3), place**2, dtype=np.uint64),
            }


class Failing:
    """Fails in its last batches, in a way of the test's choice."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        yield {"x": np.zeros(1)}
        if stop > 30:
            if self.how == "mistake":
                raise UserError("x.jsonl:7: the chat template refuses it")
            if self.how == "full":
                raise OSError(28, "No space left on device")
            if self.how == "bug":
                raise KeyError("lost")
            os.kill(os.getpid(), signal.SIGKILL)


def arrays(folder: Path, workers: int | None, batches: int = 37) -> dict[str, np.ndarray]:
    folder.mkdir()
    with ArrayWriter(folder) as writer:
        run(Counting(), batches, 100 * batches, workers, writer)
    assert {path.suffix for path in folder.iterdir()} == {".bin", ".json"}  # no part is left
    return dict(Arrays(folder))


def test_helpers_give_what_one_process_gives(tmp_path: Path) -> None:
    alone, helped = arrays(tmp_path / "alone", 1), arrays(tmp_path / "helped", 3)
    assert alone["number"].tolist() == [place for place in range(37) for _ in range(place % 5)]
    assert alone["table"].tolist() == [[place**2] * 3 for place in range(37) for _ in range(2)]
    for name, values in alone.items():
        assert helped[name].dtype == values.dtype
        assert np.array_equal(helped[name], values)


def test_few_comparisons_need_no_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert len(arrays(tmp_path / "x", None)["number"]) == sum(place % 5 for place in range(37))


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("mistake", UserError, "^x.jsonl:7: the chat template refuses it$"),
        ("full", OSError, "No space left"),
        ("bug", RuntimeError, "KeyError: 'lost'"),
        ("killed", UserError, r"^data\.preparation_workers: .* ended by itself \(exit code -9\): lower data\.prep"),
    ],
)
def test_what_goes_wrong_in_a_helper_is_said(tmp_path: Path, how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught, ArrayWriter(tmp_path) as writer:
        run(Failing(how), 37, 3700, 2, writer)
    assert getattr(caught.value, "errno", 28) == 28


def test_a_task_that_cannot_be_handed_over_is_done_here(tmp_path: Path) -> None:
    class Local(Counting):
        pass

    message = "data is prepared by one process, helpers do not start: "
    with ArrayWriter(tmp_path) as writer, pytest.warns(UserWarning, match=message):
        run(Local(), 37, 3700, 2, writer)
    assert len(Arrays(tmp_path)["number"]) == sum(place % 5 for place in range(37))
