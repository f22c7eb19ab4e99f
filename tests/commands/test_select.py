from __future__ import annotations

import json
from pathlib import Path

import pytest

from aplot_lightning.cli import main as command_line
from aplot_lightning.commands.select import main
from aplot_lightning.data.comparisons import parse_comparison
from aplot_lightning.data.sources import open_source

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
ROWS = [
    {"id": "1", "prompt": "What?", "responses": ["yes", "no", "perhaps"], "rewards": [0.5, -1.0, 2.0]},
    {"id": "2", "prompt": "When?", "responses": ["now", "now"], "rewards": [0.5, 2.0]},
    {"id": "3", "prompt": "Why?", "responses": ["so", "thus"], "rewards": [1.0, 1.0]},
    {"id": "4", "prompt": "What?", "responses": ["no", "perhaps", "perhaps"], "rewards": [-1.0, 2.0, 2.5]},
    {"id": "5", "prompt": "What?", "responses": ["no", "never"], "rewards": [-1.0, -2.0]},
]
CHAT = [{"prompt": MESSAGES, "responses": ["I", [{"role": "assistant", "content": "You"}]], "rewards": [3, 2]}]
for row in ROWS:
    row["log_probabilities"] = [-1.0 - place for place in range(len(row["responses"]))]


def write(path: Path, rows) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_of_every_prompt(tmp_path, capsys):
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    main(source, str(target))
    names = ["prompt", "chosen", "rejected", "chosen_score", "rejected_score", "id"]
    expected = [("What?", "perhaps", "no", 2.0, -1.0, "1"), ("What?", "no", "never", -1.0, -2.0, "5")]
    assert read(target) == [dict(zip(names, values, strict=True)) for values in expected]
    said = capsys.readouterr().out
    assert "2 pairs of 5 rows" in said
    assert "1 with one response, 1 without a pair, 1 repeated pairs, 2 repeated or empty responses" in said


@pytest.mark.parametrize(("rule", "chosen"), [("plus", "perhaps"), ("times", "perhaps")])
def test_crpo_rules_read_log_probabilities(tmp_path, rule, chosen):
    source, target = write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    main(source, str(target), rule=rule, phi=50.0)
    # plus: 50 x 3 - 1 for (perhaps, no) against 50 x 1.5 + 2 for (perhaps, yes)
    # times: 3 x 1 for (perhaps, no) against 1.5 x 2 for (perhaps, yes): the first of equals
    assert read(target)[0]["chosen"] == chosen
    main(source, str(target), rule="plus", phi=0.1, overwrite=True)
    assert (read(target)[0]["chosen"], read(target)[0]["rejected"]) == ("perhaps", "yes")


def test_margins(tmp_path):
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    main(source, str(target), least_margin=0.9, most_margin=1.2)
    assert [(row["chosen"], row["rejected"]) for row in read(target)] == [("no", "never")]


@pytest.mark.parametrize("rows", [ROWS, CHAT], ids=["standard", "conversational"])
def test_trl_and_our_own_reader_take_the_pairs(tmp_path, rows):
    from datasets import load_dataset
    from trl.data_utils import extract_prompt, is_conversational, maybe_apply_chat_template

    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    main(source, str(target))
    data = load_dataset("json", data_files=str(target), split="train", cache_dir=str(tmp_path / "cache"))
    made = read(target)
    assert is_conversational(data[0]) is (rows is CHAT)
    for row, pair in zip(data, made, strict=True):
        assert {name: row[name] for name in ("prompt", "chosen", "rejected")} == {
            name: pair[name] for name in ("prompt", "chosen", "rejected")
        }
    if rows is CHAT:
        implicit = {side: made[0]["prompt"] + made[0][side] for side in ("chosen", "rejected")}
        explicit = extract_prompt(implicit)  # TRL's own way from whole conversations to its layout
        assert explicit == {name: made[0][name] for name in explicit}
        rendered = maybe_apply_chat_template(made[0], _tokenizer())
        assert rendered["prompt"] == "<system>Be brief.<user>Who?<assistant>"
        assert (rendered["chosen"], rendered["rejected"]) == ("I", "You")
    for where, content in open_source(str(target), "--input").rows():
        comparison = parse_comparison(content, where, "pairs")
        pair = made[int(where.split(":")[1]) - 1]
        assert comparison.pairs == ((0, 1),)
        assert comparison.scores == (pair["chosen_score"], pair["rejected_score"])
        assert len(comparison.prompt) == (2 if rows is CHAT else 1)


def _tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    template = (
        "{% for m in messages %}{% if m['role'] != 'assistant' %}<{{ m['role'] }}>{% else %}<assistant>{% endif %}"
        "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), chat_template=template
    )


def test_unusable_rows_are_counted(tmp_path, capsys):
    nothing = {"prompt": "p", "responses": [], "rewards": []}
    bad = [nothing, {**ROWS[0], "rewards": [1]}, "{", {**ROWS[0], "rewards": None}]
    source, target = write(tmp_path / "in.jsonl", [*bad, ROWS[0]]), tmp_path / "out.jsonl"
    main(source, str(target))
    said = capsys.readouterr()
    assert len(read(target)) == 1
    assert "4 unusable" in said.out
    lines = said.err.splitlines()
    assert len(lines) == 5
    assert lines[1] == 'warning: in.jsonl:2: "rewards" holds 1 numbers for 3 responses; no pair is made of it'


def test_mistakes_are_one_line_and_lose_nothing(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", ROWS)
    useless = write(tmp_path / "useless.jsonl", ROWS[1:3])
    plain = write(tmp_path / "plain.jsonl", [{"prompt": "p", "responses": ["a", "b"], "rewards": [1, 2]}])
    there = tmp_path / "there.jsonl"
    there.write_text("precious")
    new = str(tmp_path / "new.jsonl")
    for words, message in {
        (source, str(there)): "exists already",
        (str(tmp_path / "none.jsonl"), new): "no such file",
        (source, new, "--rule", "best"): "rule",
        (source, new, "--phi", "0"): "--phi is 0.0",
        (source, new, "--least_margin", "-1"): "--least_margin is -1.0",
        (source, new, "--least_margin", "2", "--most_margin", "1"): "--most_margin is 1.0",
        (source, source, "--overwrite", "true"): "is --input itself",
        (useless, str(there), "--overwrite", "true"): "1 with one response, 1 without a pair",
        (plain, new, "--rule", "plus"): "1 unusable",
    }.items():
        assert command_line(["select", "--input", words[0], "--output", words[1], *words[2:]]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1]
        assert all(line.startswith("warning: ") for line in said[:-1])
    assert there.read_text() == "precious"
    names = {"in.jsonl", "plain.jsonl", "there.jsonl", "useless.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_disk_that_fills_up_loses_nothing(tmp_path, monkeypatch, capsys):
    source, target = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    target.write_text("precious")

    def full(row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aplot_lightning.commands.select.json_line", full)
    assert command_line(["select", "--input", source, "--output", str(target), "--overwrite", "true"]) == 2
    assert "could not be written: No space left on device" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}
