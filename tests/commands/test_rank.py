from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aplot_lightning import RewardModel
from aplot_lightning.commands.rank import main
from aplot_lightning.commands.score import main as score
from aplot_lightning.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*has no weights")

ROWS: list[Any] = [
    {"prompt": "who is it ?", "responses": ["a cat", "a dog that sat", "nobody"], "id": 1},
    {"prompt": "who is it ?", "responses": []},
    {"prompt": [{"role": "user", "content": "what ?"}], "responses": ["yes", "no", "yes"]},
    {"prompt": "what ?", "chosen": "yes", "rejected": "no"},
]


@pytest.fixture
def model(laboratory) -> str:
    return str(laboratory.folder / "backbone")


def write(path: Path, rows=ROWS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_candidates_best_first(model, tmp_path, capsys):
    main(model, write(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    first, none, tied, pair = read(tmp_path / "out.jsonl")
    loaded = RewardModel.from_pretrained(model)
    rewards = loaded.score([{"prompt": "who is it ?", "response": response} for response in ROWS[0]["responses"]])
    assert first == {**ROWS[0], "rewards": pytest.approx(rewards, abs=1e-5), "order": first["order"]}
    assert first["order"] == sorted(range(3), key=lambda place: -rewards[place])
    assert none == {**ROWS[1], "rewards": None, "order": None}
    assert tied["ties"] == [[0, 2]]
    assert tied["order"] in ([0, 2, 1], [1, 0, 2])
    assert pair == {**ROWS[3], "rewards": None, "order": None}
    said = capsys.readouterr()
    assert 'in.jsonl:2: "responses" is not a list of responses; its rewards are null' in said.err
    assert 'in.jsonl:4: no "responses"; its rewards are null' in said.err
    assert said.err.splitlines()[-1] == "warning: 2 of 4 rows have null rewards"
    assert said.out == f"scored 2 rows: {tmp_path / 'out.jsonl'}\n"


def test_the_rewards_are_scores(model, tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS[:3])
    main(model, source, str(tmp_path / "ranked.jsonl"), top=1)
    score(model, source, str(tmp_path / "scored.jsonl"))
    ranked, scored = read(tmp_path / "ranked.jsonl"), read(tmp_path / "scored.jsonl")
    assert [row["rewards"] for row in ranked] == [row["rewards"] for row in scored]
    assert [row["order"] and len(row["order"]) for row in ranked] == [1, None, 1]


def test_mistakes(model, tmp_path):
    source, target = write(tmp_path / "in.jsonl", ROWS[:2]), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"^--top is 0: it must be at least 1"):
        main(model, source, str(target), top=0)
    target.write_text("mine")
    with pytest.raises(UserError, match=r"exists already"):
        main(model, source, str(target))
    with pytest.raises(UserError, match=r"holds no row that can be scored"):
        main(model, write(tmp_path / "pairs.jsonl", ROWS[3:]), str(target), overwrite=True)
    assert target.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "pairs.jsonl"]
