"""Predictions as Parquet in the published form, and the worst errors of a set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from aplot_lightning.data.comparisons import parse_comparison
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.evaluation_set import EvaluationSet
from aplot_lightning.evaluation.similarity import token_f1
from aplot_lightning.model.locate import ASSETS
from aplot_lightning.model.tokenizer import load_tokenizer

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "who is it ?", "chosen": "the cat sat", "rejected": "the dog", "subset": "animals"},
    {"prompt": "Who  IS it ?", "chosen": "me", "rejected": "you", "target": 0.2},
    {"id": 3, "prompt": "rank", "responses": ["good", "so so", "bad"], "scores": [3, 2, 1], "subset": "many"},
    {"prompt": "unsure ?", "chosen": "left", "rejected": "right", "target": 0.5},
]
TYPES = {
    "id": "string",
    "prompt": "int64",
    "subset": "string",
    "chosen_reward": "double",
    "rejected_reward": "double",
    "target": "double",
    "similarity": "double",
    "chosen_characters": "int64",
    "rejected_characters": "int64",
}


@pytest.fixture(scope="module")
def evaluated() -> EvaluationSet:
    comparisons = [parse_comparison(row, f"x.jsonl:{place}", "x") for place, row in enumerate(ROWS, 1)]
    tokenizer = load_tokenizer(str(ASSETS / "world-decoder"), "model", "world-decoder")
    return EvaluationSet("ood/x", comparisons, ConversationEncoder(tokenizer).encode(comparisons))


def table(evaluated: EvaluationSet, gaps: list[float], order: list[int] | None = None) -> dict[str, Tensor]:
    """What an evaluation gives, in any order of the pairs: gaps[i] is that of pair i."""
    index = torch.tensor(range(len(gaps)) if order is None else order)
    columns = {name: torch.from_numpy(values)[index] for name, values in evaluated.encoded.columns.items()}
    rewards = torch.tensor(gaps)[index]
    return {**columns, "index": index, "chosen_reward": rewards + 1, "rejected_reward": torch.ones(len(gaps))}


def test_predictions_have_the_published_columns(evaluated: EvaluationSet, tmp_path: Path) -> None:
    order = [4, 0, 5, 2, 1, 3]
    path = tmp_path / "new" / "x.parquet"
    subsets = evaluated.write_predictions(path, table(evaluated, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], order))
    written = pq.read_table(path)
    assert {field.name: str(field.type) for field in written.schema} == TYPES
    rows = {row["id"]: row for row in written.to_pylist()}
    assert len(rows) == 6  # no id twice, although one row of the data makes three pairs
    assert [row["id"] for row in written.to_pylist()] == ["3:1>2", "a", "x.jsonl:4", "3:0>1", "x.jsonl:2", "3:0>2"]
    assert subsets == written["subset"].to_pylist() == ["many", "animals", "", "many", "", "many"]
    assert [rows[name]["chosen_reward"] - 1 for name in ("a", "x.jsonl:2", "3:0>1")] == [0, 1, 2]
    assert rows["a"]["chosen_characters"] == len("the cat sat")
    assert rows["a"]["rejected_characters"] == len("the dog")
    assert rows["3:1>2"]["rejected_characters"] == len("bad")
    assert rows["a"]["similarity"] == pytest.approx(token_f1("the cat sat", "the dog"))
    assert rows["a"]["similarity"] == pytest.approx(2 / 5)  # one word of three and of two: 2 * 1 / (3 + 2)
    assert [rows[name]["target"] for name in ("a", "x.jsonl:4")] == [1.0, 0.5]
    assert rows["x.jsonl:2"]["target"] == pytest.approx(0.2)


def test_prompts_are_known_by_their_normalised_text(evaluated: EvaluationSet) -> None:
    prompts = evaluated.encoded.columns["prompt"]
    assert prompts.dtype == np.int64
    assert prompts[0] == prompts[1]
    assert len(set(prompts.tolist())) == 3


def test_worst_errors_come_first_and_only_errors_come(evaluated: EvaluationSet) -> None:
    # in turn: right; wrong, as its target is below one half; wrong; right; wrong by more; a pair nobody can get wrong
    gaps = [2.0, 3.0, -1.0, 0.5, -4.0, -9.0]
    errors = evaluated.worst_errors(table(evaluated, gaps, [3, 5, 1, 0, 4, 2]), most=10)
    assert [error["id"] for error in errors] == ["3:1>2", "x.jsonl:2", "3:0>1"]
    assert errors[0]["set"] == "ood/x"
    assert errors[0]["subset"] == "many"
    assert errors[0]["prompt"] == "user: rank"
    assert (errors[0]["chosen"], errors[0]["rejected"]) == ("so so", "bad")
    assert (errors[0]["chosen_reward"], errors[0]["rejected_reward"]) == (-3.0, 1.0)
    assert [error["id"] for error in evaluated.worst_errors(table(evaluated, gaps), most=2)] == ["3:1>2", "x.jsonl:2"]


def test_equal_rewards_are_an_error(evaluated: EvaluationSet) -> None:
    assert [error["id"] for error in evaluated.worst_errors(table(evaluated, [0.0] + [1.0] * 5), 9)] == [
        "x.jsonl:2",
        "a",
    ]
