"""The command on small files of every suite, with a tiny model whose rewards are known from `RewardModel.score`."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from aplot_lightning.cli import main as cli
from aplot_lightning.commands.evaluate import main
from aplot_lightning.data.suites import SUITES
from aplot_lightning.errors import UserError
from aplot_lightning.model.reward_model import RewardModel

WORDS = ["the", "cat", "dog", "sat", "who", "what", "is", "yes", "no", "?"]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m['role'] }}> {{ m['content'] }} <eos>{% endfor %}"
)
PAIR_COLUMNS = {
    *("id", "prompt", "subset", "chosen_reward", "rejected_reward", "target"),
    *("chosen_characters", "rejected_characters", "similarity"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", "<user>", "<assistant>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=20, num_labels=1, initializer_range=0.3, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


RESPONSES = ["the cat", "no", "yes", "the dog sat", "dog dog", "cat ?", "who", "the the the", "sat no", "is ?"]
PROMPTS = ["who is ?", "what is the cat ?", "what ?"]


def pairs(subsets: list[str]) -> list[dict[str, Any]]:
    """Two pairs of each subset; every other one is the one before it, turned around."""
    rows = []
    for place, subset in enumerate(subsets * 2):
        chosen, rejected = RESPONSES[place // 2], RESPONSES[place // 2 + 5]
        if place % 2:
            chosen, rejected = rejected, chosen
        rows.append(
            {"prompt": PROMPTS[place // 2 % 3], "chosen": chosen, "rejected": rejected, "subset": subset, "id": place}
        )
    return rows


def write(path: Path, rows: list[Any]) -> Path:
    lines = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def run(model: str, suite: str, path: Path, folder: Path, **options: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    main(model, suite, str(path), str(folder / "results.json"), **options)
    return json.loads((folder / "results.json").read_text())


def reward(model: str, prompt: Any, response: str) -> float:
    return RewardModel.from_pretrained(model).score([{"prompt": prompt, "response": response}])[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_pairs_are_judged_by_the_models_rewards(model, tmp_path, capsys, suffix) -> None:
    rows = [*pairs(["a", "b"]), {"prompt": "who ?", "chosen": "yes", "rejected": "yes", "subset": "a"}]
    results = run(model, "pairs", write(tmp_path / f"rows{suffix}", rows), tmp_path / "out")
    gaps = [reward(model, row["prompt"], row["chosen"]) - reward(model, row["prompt"], row["rejected"]) for row in rows]
    right = [gap > 0 for gap in gaps]
    assert 0 < sum(right) < len(rows)
    assert results["accuracy"] == sum(right) / len(rows)  # two equal responses are a tie, which is wrong
    for name in ("a", "b"):
        own = [good for good, row in zip(right, rows, strict=True) if row["subset"] == name]
        assert results["subsets"][name]["accuracy"] == sum(own) / len(own)
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert set(table.column_names) == PAIR_COLUMNS
    found = np.array(table["chosen_reward"]) - np.array(table["rejected_reward"])
    assert found == pytest.approx(gaps, abs=1e-5)
    assert table["chosen_characters"].to_pylist() == [len(row["chosen"]) for row in rows]
    row = json.loads((tmp_path / "out" / "row.json").read_text())
    assert (row["model"], row["suite"], row["Accuracy"]) == (model, "pairs", results["accuracy"])
    assert (row["accuracy"], row["ci95"]) == (results["accuracy"], results["ci95"])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"{100 * results['accuracy']:.1f}" in captured.out


def test_a_table_of_many_subsets_leaves_them_to_the_parts_below(model, tmp_path, capsys) -> None:
    few, many = ([f"subset{number}" for number in range(count)] for count in (11, 12))
    for names in (few, many):
        rows = [{**pairs(["a"])[0], "subset": name} for name in names]
        results = run(model, "pairs", write(tmp_path / "rows.jsonl", rows), tmp_path / f"out{len(names)}")
        assert list(results["subsets"]) == names
        header = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("model"))
        assert header == ["model", "Accuracy", *(names if names is few else [])]


def test_predictions_are_those_of_a_run(finished_run, laboratory, tmp_path) -> None:
    """The same rows as `fit` wrote for its OOD set, so that `report` and `compare` can pair them."""
    run(str(finished_run), "pairs", laboratory.folder / "hard.jsonl", tmp_path / "out", batch_size=7)
    mine = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pydict()
    theirs = pq.read_table(finished_run / "predictions" / "hard.parquet").to_pydict()
    assert set(mine) == set(theirs)
    for name in ("id", "prompt", "subset", "target", "chosen_characters", "rejected_characters"):
        assert mine[name] == theirs[name], name
    for name in ("chosen_reward", "rejected_reward", "similarity"):
        assert mine[name] == pytest.approx(theirs[name], abs=1e-5), name
    metrics = json.loads((finished_run / "metrics.json").read_text())["ood"]["hard"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["accuracy"], results["ci95"]) == (metrics["accuracy"], metrics["ci95"])


def test_a_suite_is_an_ood_set_of_a_run(laboratory, tmp_path) -> None:
    rows = [{**json.loads(line), "subset": name} for line, name in _lines(laboratory, ["helpful", "honest", "other"])]
    path = write(tmp_path / "hhh.jsonl", rows)
    ood = {"hhh": {"suite": "hhh", "path": str(path)}}
    options = {"data.ood": ood, "trainer.max_epochs": 1}
    assert laboratory("fit", tmp_path / "run", options) == 0
    entry = json.loads((tmp_path / "run" / "metrics.json").read_text())["ood"]["hhh"]
    assert {name: part["pairs"] for name, part in entry["subsets"].items()} == {
        "helpful": 11,
        "honest": 11,
        "other": 11,
    }
    results = run(str(tmp_path / "run"), "hhh", path, tmp_path / "out")
    assert results["accuracy"] == entry["accuracy"]
    for name in ("helpful", "honest", "other"):
        assert results["subsets"][name]["accuracy"] == entry["subsets"][name]["accuracy"]


def _lines(laboratory, names: list[str]) -> list[tuple[str, str]]:
    lines = (laboratory.folder / "style.jsonl").read_text().splitlines()
    return [(line, names[place % len(names)]) for place, line in enumerate(lines)]


def test_prompts_of_many_responses(model, tmp_path, capsys) -> None:
    row = {"prompt": "who is ?", "chosen": RESPONSES[:3], "rejected": RESPONSES[3:6], "domain": "chat", "id": "x"}
    results = run(model, "rm_bench", write(tmp_path / "rows.jsonl", [row, {**row, "domain": "math"}]), tmp_path / "out")
    chosen, rejected = ([reward(model, "who is ?", text) for text in row[side]] for side in ("chosen", "rejected"))
    normal = [one > other for one, other in zip(chosen, rejected, strict=True)]
    assert results["normal"] == pytest.approx(sum(normal) / 3)
    assert results["domains"]["math"]["normal"] == pytest.approx(sum(normal) / 3)
    assert results["domains"]["code"] is None
    assert results["mean"] is None
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert table.column_names == ["id", "prompt", "subset", "rewards", "correct"]
    assert table["rewards"].to_pylist()[0] == pytest.approx([*chosen, *rejected], abs=1e-5)
    assert table["correct"].to_pylist() == [3, 3]
    captured = capsys.readouterr()
    assert captured.err == "warning: rm_bench: no rows of code, safety: null\n"
    assert "Avg" in captured.out


def test_rewardbench_2(model, tmp_path) -> None:
    row = {"id": "1", "prompt": "what ?", "chosen": ["no"], "rejected": ["yes", "who", "no"], "subset": "Math"}
    rewards = [reward(model, "what ?", text) for text in ("no", "yes", "who")]
    results = run(model, "rewardbench2", write(tmp_path / "rows.jsonl", [row]), tmp_path / "out")
    expected = 0.5 if rewards[0] == max(rewards) else 0.0  # it shares its reward with a wrong one of the same text
    assert results["subsets"]["Math"] == {"accuracy": expected, "ci95": None, "prompts": 1}


def test_mt_bench_draws_questions(model, tmp_path) -> None:
    def vote(answer: str) -> dict[str, Any]:
        sides = [
            [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, texts, strict=True)]
            for texts in (["who ?", answer, "what ?", "yes"], ["who ?", "no", "what ?", "cat"])
        ]
        return {"winner": "model_a", "conversation_a": sides[0], "conversation_b": sides[1], "turn": 2}

    path = write(tmp_path / "votes.jsonl", [vote("the"), vote("dog"), {**vote("is"), "winner": "tie"}])
    results = run(model, "mt_bench", path, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert len(set(table["prompt"].to_pylist())) == 1  # one question, whatever the first answers were
    assert table.num_rows == 2
    assert results["ci95"] is None
    first = RewardModel.from_pretrained(model).score([{"prompt": vote("the")["conversation_a"][:3], "response": "yes"}])
    assert table["chosen_reward"].to_pylist()[0] == pytest.approx(first[0], abs=1e-5)


def test_empty_answers_count(model, tmp_path) -> None:
    rows = [{"prompt": "who ?", "chosen": "", "rejected": "no"}, {"prompt": "what ?", "chosen": "yes", "rejected": ""}]
    run(model, "pairs", write(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "predictions.parquet").num_rows == 2


def test_rows_rated_the_same_have_no_pair(model, tmp_path, capsys) -> None:
    rows = [*pairs(["a"]), {"prompt": "who ?", "responses": ["yes", "no"], "scores": [1, 1]}]
    run(model, "pairs", write(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    assert "warning: 1 rows are left out: tie\n" in capsys.readouterr().err


def test_a_row_that_the_template_refuses_is_told_and_left_out(model, tmp_path, capsys) -> None:
    refused = {"prompt": [{"role": "tool", "content": "who ?"}], "chosen": "the cat sat", "rejected": "no"}
    results = run(model, "pairs", write(tmp_path / "rows.jsonl", [refused, *pairs(["a", "b"])]), tmp_path / "out")
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: rows.jsonl:1: ")
    assert "no tools" in first
    assert last == "warning: 1 of 5 rows are left out"
    assert results["accuracy"] == 0.5
    with pytest.raises(UserError, match=r"--data: no row can be scored: rows\.jsonl:1: "):
        main(model, "pairs", str(write(tmp_path / "rows.jsonl", [refused])))


GOOD = {"question": "who ?", "response_A": "yes", "response_B": "no", "label": "A>B", "source": "mmlu-pro-law"}
WRONG = {
    "not JSON": ['{"question": "who ?", "respo', r"rows\.jsonl:2: not JSON"],
    "no object": ["[1, 2]", r"rows\.jsonl:2: not a JSON object"],
    "a field is missing": [{"question": "who ?"}, r"rows\.jsonl:2: no row of JudgeBench, which has question, "],
    "another suite": [pairs(["helpful"])[0], r"rows\.jsonl:2: the subset 'helpful' is no part of JudgeBench"],
    "another suite's raw row": [
        {"input": "who ?", "output_1": "yes", "output_2": "no", "label": 1},
        r"rows\.jsonl:2: no row of JudgeBench, .*; this one looks like llmbar",
    ],
}


@pytest.mark.parametrize("name", WRONG)
def test_malformed_rows_are_one_line(model, tmp_path, name) -> None:
    row, message = WRONG[name]
    path = write(tmp_path / "rows.jsonl", [GOOD, row])
    with pytest.raises(UserError, match=f"^--data: {message}") as caught:
        main(model, "judgebench", str(path), str(tmp_path / "results.json"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json", ".parquet"])
def test_files_that_break_off(model, tmp_path, suffix) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        import pyarrow as pa

        pq.write_table(pa.Table.from_pylist([GOOD] * 50), path)
    elif suffix == ".json":
        path.write_text(json.dumps([GOOD] * 50))
    else:
        write(path, [{**GOOD, "question": str(hash(str(place)))} for place in range(50)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="damaged") as caught:
        main(model, "judgebench", str(path))
    assert str(caught.value).startswith("--data: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "reward-bench"}, "^--suite: there is no 'reward-bench': the suites are rewardbench, "),
        ({"data": "nothing.jsonl"}, "^--data: no such file: 'nothing.jsonl'"),
        ({"model": "./no/model"}, "--model"),
        ({"output": "no/folder/results.json"}, "^--output: "),
        ({"output": "results.csv"}, r"^--output: results\.csv is no \.json file"),
        ({"batch_size": 0}, "^--batch_size is 0"),
        ({"max_length": -1}, "^--max_length is -1"),
    ],
)
def test_wrong_options(model, tmp_path, monkeypatch, options, message) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", [GOOD])
    with pytest.raises(UserError, match=message):
        main(**{"model": model, "suite": "judgebench", "data": "rows.jsonl", **options})


def test_outputs_that_exist_are_kept(model, tmp_path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(["a"]))
    output = tmp_path / "hhh.json"
    main(model, "pairs", str(path), str(output))
    beside = {"hhh.json", "hhh.predictions.parquet", "hhh.row.json"}
    assert beside <= {file.name for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"hhh\.json exists already"):
        main(model, "pairs", str(path), str(output))
    output.unlink()
    with pytest.raises(UserError, match=r"hhh\.predictions\.parquet exists already"):
        main(model, "pairs", str(path), str(output))
    main(model, "pairs", str(path), str(output), overwrite=True)
    with pytest.raises(UserError, match="--data itself"):
        main(model, "pairs", str(path), str(path), overwrite=True)


def test_without_an_output_only_the_table(model, tmp_path, capsys) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(["a"]))
    before = set(tmp_path.iterdir())
    assert cli(["evaluate", "--model", model, "--suite", "pairs", "--data", str(path), "--dtype", "bfloat16"]) == 0
    assert set(tmp_path.iterdir()) == before
    assert "Accuracy" in capsys.readouterr().out


def test_the_help_names_every_suite(capsys) -> None:
    with pytest.raises(SystemExit):
        cli(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(suite in text for suite in SUITES)


def test_a_missing_input_answers_at_once(model, tmp_path) -> None:
    words = ["evaluate", "--model", model, "--suite", "hhh", "--data", str(tmp_path / "nothing.jsonl")]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "aplot_lightning", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert time.perf_counter() - start < 30  # measured: 0.6 s; what is tested is that nothing heavy is imported
    heavy = "[m for m in ('torch', 'transformers') if m in sys.modules]"
    code = f"import sys, aplot_lightning.commands.evaluate; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(["a"]))

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(UserError, match=r"predictions\.parquet could not be written: No space left on device"):
        main(model, "pairs", str(path), str(tmp_path / "results.json"))
    assert {file.name for file in tmp_path.iterdir()} == {"rows.jsonl"}


def test_models_that_cannot_be_read_are_one_line(model, tmp_path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    path = write(tmp_path / "rows.jsonl", pairs(["a"]))
    with pytest.raises(UserError, match="broken"):
        main(str(broken), "pairs", str(path))
