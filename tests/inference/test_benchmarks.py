from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from aplot_lightning.data.sources import open_source
from aplot_lightning.errors import UserError
from aplot_lightning.inference.benchmarks import pair_table, prompt_table, read_rows, scored


class Counting:
    """Stands for a model whose rewards never repeat: how often it is asked shows in them."""

    def __init__(self) -> None:
        self.scored = 0

    def encode(self, conversations: Any) -> list[np.ndarray]:
        return [np.frombuffer(json.dumps(each).encode(), dtype=np.uint8) for each in conversations]

    def score_rows(self, rows: Any, *, batch_size: int) -> list[float]:
        start, self.scored = self.scored, self.scored + len(rows)
        return [float(number) for number in range(start, self.scored)]


def read(tmp_path, rows: list[dict[str, Any]]) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_rows(open_source(str(path), "x"))


def test_equal_texts_have_one_reward(tmp_path) -> None:
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "x"},
        {"prompt": "a", "responses": ["x", "y", "x"], "scores": [2, 1, 0]},
    ]
    model = Counting()
    steps: list[int] = []
    found = list(scored(model, read(tmp_path, rows).comparisons, 4, steps.append))
    assert [rewards for _, rewards in found] == [[0.0, 0.0], [0.0, 1.0, 0.0]]
    assert model.scored == 2
    assert steps == [2]


def test_a_row_counts_whatever_it_holds_but_for_ties(tmp_path) -> None:
    rows = [
        {"prompt": "a", "chosen": "", "rejected": "y", "id": "empty", "target": 0.8, "subset": "s"},
        {"prompt": "a", "responses": ["x", "x", "z"], "scores": [1, 0, 0], "id": "equal"},
        {"prompt": "a", "chosen": "x", "rejected": "y", "chosen_score": 3, "rejected_score": 3},
    ]
    found = read(tmp_path, rows)
    assert found.left_out == {"tie": 1}
    empty, equal = found.comparisons
    assert (empty.id, empty.subset, empty.target, empty.pairs) == ("empty", "s", 0.8, ((0, 1),))
    assert equal.pairs == ((0, 1), (0, 2))
    table = pair_table([(empty, [1.0, 2.0]), (equal, [1.0, 2.0, 3.0])])
    assert table["id"].tolist() == ["empty", "equal:0>1", "equal:0>2"]
    assert table["target"].tolist() == [0.8, 1.0, 1.0]
    assert len(set(table["prompt"].tolist())) == 1
    assert prompt_table([(equal, [1.0, 2.0, 3.0])])["correct"].tolist() == [1]


def test_nothing_to_score(tmp_path) -> None:
    with pytest.raises(UserError, match="no row that can be scored"):
        read(tmp_path, [{"prompt": "a", "chosen": "x", "rejected": "y", "chosen_score": 3, "rejected_score": 3}])
