from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aplot_lightning.cli import main as command_line
from aplot_lightning.commands.aggregate import main
from aplot_lightning.errors import UserError


def write(path: Path, rows) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ROWS = [
    {"id": "1", "answers": ["3", "4", "4"], "rewards": [0.9, 0.3, 0.4], "correct": "3", "note": {"é": 1}},
    {"id": "2", "answers": ["x", None, "y"], "rewards": [0.2, 0.9, 0.3], "correct": "y"},
]


def sampled(seed: int, prompts: int, samples: int = 12, shift: float = 1.5) -> list[dict]:
    random = np.random.default_rng(seed)
    rows = []
    for place in range(prompts):
        right = random.random(samples) < 0.35
        answers = np.where(right, 0, random.integers(1, 4, size=samples))
        rewards = random.normal(np.where(right, shift, 0.0), 1.0) + 7
        rows.append({"id": place, "answers": answers.tolist(), "rewards": rewards.tolist(), "correct": 0})
    return rows


def test_votes_are_added_to_the_rows(tmp_path, capsys):
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    main(source, str(target))
    assert read(target) == [
        {**ROWS[0], "voted_answer": "4", "tied": [], "votes": {"3": 1.0, "4": 2.0}},
        {**ROWS[1], "voted_answer": "x", "tied": ["x", "y"], "votes": {"x": 1.0, "y": 1.0}},
    ]
    main(source, str(target), vote="raw", overwrite=True)
    assert [row["voted_answer"] for row in read(target)] == ["3", "y"]
    said = capsys.readouterr().out
    assert "voted on 2 rows (raw, p = the reward as it is)" in said
    # of the first row's samples a third are right, of the second's a third too
    assert "| 1 | 2 | 0." in said
    assert "| n | prompts | majority | best | raw |" in said


def test_the_responses_of_score_with_a_pattern(tmp_path):
    rows = [
        {"prompt": "1 + 1?", "responses": ["It is 2.", "It is 3.", "Two"], "rewards": [-2.0, 1.0, 5.0]},
        {"prompt": "1 + 2?", "responses": ["No idea"], "rewards": [1.0]},
    ]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl.gz"
    main(source, str(target), vote="best", answer_pattern=r"is (\d)")
    found = [json.loads(line) for line in gzip.decompress(target.read_bytes()).splitlines()]
    assert [row["voted_answer"] for row in found] == ["3", None]
    assert found[0]["votes"] == {"2": -2.0, "3": 1.0}
    assert found[0]["responses"] == rows[0]["responses"]


def test_calibrated_votes_are_right_more_often(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", sampled(1, 150))
    labelled = write(tmp_path / "labelled.jsonl", sampled(2, 100))
    right = {}
    for vote in ("majority", "linear", "logit", "density"):
        target = tmp_path / f"{vote}.jsonl"
        main(source, str(target), vote=vote, calibration=labelled, draws=4)
        right[vote] = np.mean([row["voted_answer"] == "0" for row in read(target)])
    said = capsys.readouterr().out
    assert min(right[vote] for vote in ("linear", "logit", "density")) > right["majority"] + 0.1
    assert "p = sigmoid(" in said
    assert "q = 0.3" in said
    assert "| n | prompts | majority | best | raw | linear | logit | density |" in said
    last = [line for line in said.splitlines() if line.startswith("| 12 | 150 |")][-1].split(" | ")
    assert float(last[-1].split()[0]) == pytest.approx(right["density"], abs=0.0051)


def test_single_labelled_scores_are_enough_for_density(tmp_path, capsys):
    rows = sampled(2, 60)
    flat = [
        {"reward": reward, "right": answer == 0}
        for row in rows
        for answer, reward in zip(row["answers"], row["rewards"], strict=True)
    ]
    source, labelled = write(tmp_path / "in.jsonl", sampled(1, 5)), write(tmp_path / "flat.jsonl", flat)
    whole = write(tmp_path / "whole.jsonl", rows)
    main(source, str(tmp_path / "a.jsonl"), vote="density", calibration=labelled)
    main(source, str(tmp_path / "b.jsonl"), vote="density", calibration=whole)
    for one, other in zip(read(tmp_path / "a.jsonl"), read(tmp_path / "b.jsonl"), strict=True):
        assert one["votes"] == pytest.approx(other["votes"])
    with pytest.raises(UserError, match="take --vote density"):
        main(source, str(tmp_path / "c.jsonl"), vote="logit", calibration=labelled)
    assert not (tmp_path / "c.jsonl").exists()


def test_unusable_rows_keep_their_place(tmp_path, capsys):
    bad = [{"answers": [], "rewards": []}, {"answers": ["a"], "rewards": [1, 2]}, "not json", {"answers": ["a"]}]
    rows = [bad[0], ROWS[0], bad[1], bad[2], bad[3]]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    main(source, str(target))
    found = read(target)
    assert [row["voted_answer"] for row in found] == [None, "4", None, None, None]
    assert found[2] == {**bad[1], "voted_answer": None, "tied": None, "votes": None}
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(":")[2] for line in warnings[:4]] == ["1", "3", "4", "5"]
    assert warnings[1] == 'warning: in.jsonl:3: "rewards" holds 2 numbers for 1 responses; it is not voted on'
    assert warnings[4].startswith("warning: 4 of 5 rows")


def test_calibrating_on_the_rows_themselves_is_said(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", sampled(1, 20))
    main(source, str(tmp_path / "out.jsonl"), vote="density", calibration=source, draws=2)
    assert "the very rows" in capsys.readouterr().err


def test_mistakes_are_one_line_and_lose_nothing(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", ROWS)
    empty = write(tmp_path / "empty.jsonl", [{"answers": [], "rewards": []}])
    unlabelled = write(tmp_path / "unlabelled.jsonl", [{"answers": ["a"], "rewards": [1]}])
    there = tmp_path / "there.jsonl"
    there.write_text("precious")
    new = str(tmp_path / "new.jsonl")
    for words, message in {
        (source, str(there)): "exists already",
        (str(tmp_path / "none.jsonl"), new): "no such file",
        (source, new, "--vote", "density"): "needs --calibration",
        (source, new, "--scale", "platt"): "needs --calibration",
        (source, new, "--vote", "mode"): "vote",
        (source, new, "--choices", "1"): "--choices is 1",
        (source, new, "--draws", "0"): "--draws is 0",
        (source, new, "--answer_pattern", "("): "no regular expression",
        (source, source, "--overwrite", "true"): "is --input itself",
        (empty, new): "holds no row with answers",
        (source, new, "--vote", "density", "--calibration", unlabelled): "says what is right",
        (source, str(tmp_path / "out.parquet")): "only JSONL",
        (source, str(tmp_path / "nowhere" / "out.jsonl")): "does not exist",
    }.items():
        assert command_line(["aggregate", "--input", words[0], "--output", words[1], *words[2:]]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1]
        assert said[-1].startswith("aplot: ")
        assert all(line.startswith("warning: ") for line in said[:-1])
    assert there.read_text() == "precious"
    assert not Path(new).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "empty.jsonl",
        "in.jsonl",
        "there.jsonl",
        "unlabelled.jsonl",
    ]


@pytest.mark.parametrize("command", ["aggregate", "select"])
def test_a_missing_input_loads_nothing_heavy(command, tmp_path):
    words = ["--input", str(tmp_path / "none.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    code = (
        f"import sys; from aplot_lightning.cli import main; code = main({[command, *words]!r});"
        "print(code, [m for m in ('torch', 'scipy', 'transformers', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"
