from __future__ import annotations

import datetime
import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from aplot_lightning.commands.score import main
from aplot_lightning.errors import UserError
from aplot_lightning.inference import job
from aplot_lightning.inference.normalisation import Normalisation, with_normalisation
from aplot_lightning.inference.part import Part
from aplot_lightning.model.configuration import emulation
from aplot_lightning.model.reward_model import RewardModel

WORDS = ["the", "cat", "dog", "sat", "who", "what", "is", "yes", "no", "?", "é", "猫"]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m['role'] }}> {{ m['content'] }} <eos>{% endfor %}"
)


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


PAIR = {"prompt": "who is ?", "chosen": "the cat", "rejected": "no", "id": "7", "note": {"é": ["猫", 1.5]}}
GOOD = [
    PAIR,
    {"prompt": "what ?", "responses": ["yes", "no dog", "the cat sat"]},
    {"prompt": "what ?", "response": "yes"},
    {"prompt": [{"role": "user", "content": "who ?"}], "chosen": "yes", "rejected": "yes"},
]
BAD = {
    2: "not json",
    4: json.dumps({"prompt": "who ?", "chosen": "the cat"}),
    6: json.dumps({"prompt": "who ?", "responses": "yes"}),
    7: json.dumps([1, 2]),
    8: json.dumps({"prompt": [{"role": "tool", "content": "x"}], "response": "no"}),
}


def write(path: Path, lines) -> Path:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else path.open("w", encoding="utf-8") as file:
        file.write(text)
    return path


def read(path: Path) -> list[dict]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode().splitlines()]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_every_row_in_order_with_its_rewards(model, tmp_path, capsys, suffix):
    source, target = write(tmp_path / f"in{suffix}", GOOD), tmp_path / f"out{suffix}"
    main(model, str(source), str(target))
    rows = read(target)
    added = ["chosen_reward", "rejected_reward", "rewards", "reward"]
    assert [{name: value for name, value in row.items() if name not in added} for row in rows] == GOOD
    loaded = RewardModel.from_pretrained(model)

    def reward(prompt, response):
        return pytest.approx(loaded.score([{"prompt": prompt, "response": response}])[0], abs=1e-6)

    assert rows[0]["chosen_reward"] == reward("who is ?", "the cat")
    assert rows[0]["rejected_reward"] == reward("who is ?", "no")
    assert rows[1]["rewards"] == [reward("what ?", response) for response in GOOD[1]["responses"]]
    assert rows[2]["reward"] == reward("what ?", "yes")
    assert rows[3]["chosen_reward"] == rows[3]["rejected_reward"] == reward("who ?", "yes")
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == f"scored 4 rows: {target}\n"


def test_text_is_written_as_it_was_read(model, tmp_path):
    source = write(tmp_path / "in.jsonl", [PAIR])
    main(model, str(source), str(tmp_path / "out.jsonl"))
    line = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert line.startswith(source.read_text(encoding="utf-8").rstrip("}\n"))


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_unusable_rows_keep_their_place(model, tmp_path, capsys, monkeypatch, chunk):
    monkeypatch.setattr(job, "CHUNK", chunk)
    good = iter(GOOD)
    lines = [BAD[number] if number in BAD else next(good) for number in range(1, 10)]
    main(model, str(write(tmp_path / "in.jsonl", lines)), str(tmp_path / "out.jsonl"), batch_tokens=20)
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) == len(lines)
    usable = [place for place, row in enumerate(rows, 1) if None not in row.values()]
    assert usable == [1, 3, 5, 9]
    assert rows[1] == {"chosen_reward": None, "rejected_reward": None}
    assert rows[3] == {"prompt": "who ?", "chosen": "the cat", "chosen_reward": None, "rejected_reward": None}
    assert rows[5] == {"prompt": "who ?", "responses": "yes", "rewards": None}
    assert rows[7]["reward"] is None
    warnings = capsys.readouterr().err.splitlines()
    assert [f"in.jsonl:{number}:" in line for number, line in zip(BAD, warnings, strict=False)] == [True] * len(BAD)
    assert warnings[-1] == "warning: 5 of 9 rows have null rewards"


def test_half_a_character_does_not_stop_the_rest(model, tmp_path):
    lines = [
        GOOD[2],
        '{"prompt": "who ?", "response": "\\ud83d"}',
        '{"prompt": "who ?", "response": "no", "x": "\\ud83d"}',
    ]
    main(model, str(write(tmp_path / "in.jsonl", lines)), str(tmp_path / "out.jsonl"))
    rows = read(tmp_path / "out.jsonl")
    assert [row["reward"] is None for row in rows][::2] == [False, False]
    assert rows[2]["x"] == "\ud83d"


def test_rewards_do_not_depend_on_chunks_or_batches(model, tmp_path, monkeypatch):
    lines = [{"prompt": "who ?", "response": " ".join(WORDS[i % 12] for i in range(1 + 7 * n % 23))} for n in range(40)]
    source = write(tmp_path / "in.jsonl", lines)
    rewards = []
    for number, (chunk, options) in enumerate(
        [(512, {"batch_size": 40}), (7, {"batch_size": 1}), (9, {"batch_size": 4})]
    ):
        monkeypatch.setattr(job, "CHUNK", chunk)
        main(model, str(source), str(tmp_path / f"{number}.jsonl"), **options)
        rewards.append([row["reward"] for row in read(tmp_path / f"{number}.jsonl")])
    assert rewards[1] == pytest.approx(rewards[0], abs=1e-5)
    assert rewards[2] == pytest.approx(rewards[0], abs=1e-5)


def test_a_model_without_head_is_said_in_one_line(model, tmp_path, capsys):
    folder = tmp_path / "headless"
    AutoModelForSequenceClassification.from_pretrained(model).model.save_pretrained(folder)
    for file in Path(model).glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(Path(model) / "chat_template.jinja", folder)
    capsys.readouterr()
    main(str(folder), str(write(tmp_path / "in.jsonl", GOOD)), str(tmp_path / "out.jsonl"))
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {str(folder)!r} has no reward head: ")


def test_a_precision_that_the_processor_emulates_is_said(model, tmp_path, capsys):
    main(model, str(write(tmp_path / "in.jsonl", GOOD)), str(tmp_path / "out.jsonl"), dtype="bfloat16")
    slow = emulation("bfloat16", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    expected = [] if slow is None else [f"warning: --dtype: {slow}"]
    assert [line for line in capsys.readouterr().err.splitlines() if "--dtype" in line] == expected


def test_an_existing_output_is_left_alone_unless_told(model, tmp_path):
    source, target = write(tmp_path / "in.jsonl", GOOD), tmp_path / "out.jsonl"
    target.write_text("mine")
    with pytest.raises(UserError, match=r"--output: .*out\.jsonl exists already: .* --overwrite true"):
        main(model, str(source), str(target))
    assert target.read_text() == "mine"
    main(model, str(source), str(target), overwrite=True)
    assert len(read(target)) == len(GOOD)


def test_a_failure_leaves_nothing_behind(model, tmp_path, monkeypatch):
    source, target = write(tmp_path / "in.jsonl", GOOD), tmp_path / "out.jsonl"
    target.write_text("mine")

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(RewardModel, "score_rows", fail)
    with pytest.raises(RuntimeError):
        main(model, str(source), str(target), overwrite=True)
    assert target.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_file_without_one_usable_row_is_a_mistake(model, tmp_path):
    source = write(tmp_path / "in.jsonl", ["{}", '{"prompt": "who ?"}'])
    with pytest.raises(UserError, match=r"--input: .*in\.jsonl holds no row that can be scored"):
        main(model, str(source), str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "missing.jsonl"}, r"missing\.jsonl"),
        ({"input": "empty.jsonl"}, r"empty\.jsonl"),
        ({"model": "/no/such/model"}, r"--model: '/no/such/model' does not exist"),
        ({"output": "no/folder/out.jsonl"}, r"--output: .* name a file"),
        ({"output": "."}, r"--output: .* name a file"),
        ({"batch_size": 0}, r"--batch_size is 0: it must be at least 1"),
        ({"max_length": -3}, r"--max_length is -3: it must be at least 1"),
        ({"dtype": "int7"}, r"dtype 'int7' is unknown: choose one of"),
    ],
)
def test_mistakes(model, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", GOOD)
    write(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match=message) as caught:
        main(**{"model": model, "input": "in.jsonl", "output": "out.jsonl", **change})
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl", "in.jsonl"]


def test_help_and_mistakes_do_not_wait_for_torch():
    code = """if True:
        import sys
        from jsonargparse import ArgumentParser
        from aplot_lightning.commands.score import main
        ArgumentParser().add_function_arguments(main)
        try: main("some/model", "missing.jsonl", "out.jsonl")
        except Exception as error: print(type(error).__name__, "torch" in sys.modules, "transformers" in sys.modules)
    """
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["UserError", "False", "False"], done.stderr
    assert time.perf_counter() - started < 5  # far less than that; torch and transformers alone take longer


# Several models


@pytest.fixture(scope="module")
def others(model, tmp_path_factory) -> list[str]:
    """Two more models of the same sizes, with other weights and an order of words of their own."""
    folders = []
    for seed in (2, 3):
        folder = tmp_path_factory.mktemp("other")
        shutil.copytree(model, folder, dirs_exist_ok=True)
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(model)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["cat"], vocabulary["dog"] = (vocabulary["cat"], vocabulary["dog"])[:: 1 if seed == 2 else -1]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        folders.append(str(folder))
    return folders


@pytest.mark.parametrize("combine", ["mean", "minimum", "mean_minus_variance"])
def test_an_ensemble_combines_what_each_model_says(model, others, tmp_path, combine):
    source = write(tmp_path / "in.jsonl", GOOD)
    main(model, str(source), str(tmp_path / "out.jsonl"), ensemble=others, combine=combine)
    loaded = [RewardModel.from_pretrained(name) for name in (model, *others)]

    def combined(prompt, response):
        rewards = np.array([one.score([{"prompt": prompt, "response": response}])[0] for one in loaded])
        values = {"mean": rewards.mean(), "minimum": rewards.min(), "mean_minus_variance": rewards.mean()}
        return pytest.approx(values[combine] - rewards.var() * (combine == "mean_minus_variance"), abs=1e-6)

    rows = read(tmp_path / "out.jsonl")
    assert rows[0]["chosen_reward"] == combined("who is ?", "the cat")
    assert rows[0]["rejected_reward"] == combined("who is ?", "no")
    assert rows[1]["rewards"] == [combined("what ?", response) for response in GOOD[1]["responses"]]
    assert rows[2]["reward"] == combined("what ?", "yes")


def test_an_ensemble_of_equals_is_the_model_itself(model, tmp_path):
    source = write(tmp_path / "in.jsonl", GOOD)
    main(model, str(source), str(tmp_path / "one.jsonl"))
    for combine in ("mean", "minimum", "mean_minus_variance"):
        main(model, str(source), str(tmp_path / f"{combine}.jsonl"), ensemble=[model], combine=combine)
        assert read(tmp_path / f"{combine}.jsonl") == read(tmp_path / "one.jsonl")


def test_a_row_that_one_model_cannot_read_is_null(model, others, tmp_path, capsys):
    folder = tmp_path / "strict"
    shutil.copytree(others[0], folder)
    template = "{% for m in messages %}{% if m['content'] == 'yes' %}{{ raise_exception('no') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template + "{{ m['content'] }} <eos>{% endfor %}")
    source = write(tmp_path / "in.jsonl", [GOOD[2], *GOOD[:2], BAD[2]])
    main(model, str(source), str(tmp_path / "out.jsonl"), ensemble=[others[0], str(folder)])
    rows = read(tmp_path / "out.jsonl")
    assert [None in row.values() for row in rows] == [True, False, True, True]  # one bad response is enough
    assert capsys.readouterr().err.splitlines()[-1] == "warning: 3 of 4 rows have null rewards"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ensemble": ["/no/such/model"]}, r"^--ensemble: '/no/such/model' does not exist"),
        ({"combine": "minimum"}, r"^--combine minimum needs further models: name them by --ensemble"),
        ({"ensemble": [], "combine": "minimum"}, r"^--combine minimum needs further models"),
    ],
)
def test_mistakes_of_an_ensemble(model, tmp_path, change, message):
    source = write(tmp_path / "in.jsonl", GOOD)
    with pytest.raises(UserError, match=message):
        main(model, str(source), str(tmp_path / "out.jsonl"), **change)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_ensemble_is_named_on_the_command_line(model, others, tmp_path):
    from aplot_lightning import cli

    source, target = write(tmp_path / "in.jsonl", GOOD), tmp_path / "out.jsonl"
    words = ["--model", model, "--input", str(source), "--output", str(target), "--combine"]
    listed = ["--ensemble", f"[{','.join(others)}]"]
    assert cli.main(["score", *words, "minimum", *listed]) == 0
    assert len(read(target)) == len(GOOD)
    assert cli.main(["score", *words, "median", *listed]) == 2


# Going on, Parquet, normalisation, calibration


def failing_after(monkeypatch, chunks: int) -> None:
    """The disk is full after so many chunks."""
    append, done = Part.append, []

    def full(part, *arguments):
        if len(done) == chunks:
            raise part._unwritten(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        done.append(append(part, *arguments))

    monkeypatch.setattr(Part, "append", full)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_run_that_was_cut_short_goes_on(model, tmp_path, monkeypatch, capsys, suffix):
    monkeypatch.setattr(job, "CHUNK", 2)
    lines = [*GOOD, BAD[2], *GOOD[:2]]
    source, target, other = write(tmp_path / "in.jsonl", lines), tmp_path / f"out{suffix}", tmp_path / f"whole{suffix}"
    main(model, str(source), str(other))
    with monkeypatch.context() as patch:
        failing_after(patch, 2)
        with pytest.raises(UserError, match=r"No space left on device; .* first 4 rows are kept in .*--resume true$"):
            main(model, str(source), str(target))
    with pytest.raises(UserError, match=r"was left by a run that did not end: go on with --resume true"):
        main(model, str(source), str(target))
    with pytest.raises(UserError, match=r"begun with another --batch_size"):
        main(model, str(source), str(target), resume=True, batch_size=1)
    write(source, [GOOD[1], *lines[1:]])
    with pytest.raises(UserError, match=r"the first 4 rows of --input have changed since"):
        main(model, str(source), str(target), resume=True)
    write(source, lines)
    scored = []
    score_rows = RewardModel.score_rows
    monkeypatch.setattr(
        RewardModel, "score_rows", lambda self, rows, **more: scored.append(len(rows)) or score_rows(self, rows, **more)
    )
    capsys.readouterr()
    main(model, str(source), str(target), resume=True)
    assert sum(scored) == 5  # rows 6 and 7 alone: the fifth is none
    assert target.read_bytes() == other.read_bytes()
    assert capsys.readouterr().err.splitlines()[-1] == "warning: 1 of 7 rows have null rewards"
    main(model, str(source), str(target), resume=True)
    assert capsys.readouterr().out == f"{target} is whole: nothing is left to do\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.jsonl", target.name, other.name])


def test_parquet_in_and_out(model, tmp_path):
    rows = [{"prompt": "who ?", "chosen": "yes", "rejected": "no", "day": datetime.date(2026, 11, n)} for n in (1, 2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    main(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"))
    main(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.jsonl"))
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    names = ["chosen_reward", "rejected_reward"]
    assert [[row[name] for name in names] for row in found] == [
        [row[name] for name in names] for row in read(tmp_path / "out.jsonl")
    ]


def test_equal_texts_have_equal_rewards(model, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": "who ?", "responses": ["yes", "the cat sat", "yes"]}] * 3)
    main(model, str(source), str(tmp_path / "out.jsonl"))
    first, *others = [row["rewards"] for row in read(tmp_path / "out.jsonl")]
    assert first[0] == first[2] != first[1]
    assert others == [first, first]


def test_normalised_rewards(model, tmp_path):
    folder = tmp_path / "normalised"
    shutil.copytree(model, folder)
    source = write(tmp_path / "in.jsonl", GOOD)
    with pytest.raises(UserError, match=r"^--normalise: .* has no mean and scale of its rewards: export it with"):
        main(str(folder), str(source), str(tmp_path / "out.jsonl"), normalise=True)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(with_normalisation(config, Normalisation(0.5, 2.0, 10, "x")))
    main(str(folder), str(source), str(tmp_path / "plain.jsonl"))
    main(str(folder), str(source), str(tmp_path / "out.jsonl"), normalise=True)
    plain, found = ([row["rewards"] for row in read(tmp_path / f"{name}.jsonl")[1:2]] for name in ("plain", "out"))
    np.testing.assert_allclose(found, (np.array(plain) - 0.5) / 2, rtol=1e-12)
    (folder / "config.json").write_text(with_normalisation(config, Normalisation(0.5, 0.0, 10, "x")))
    with pytest.raises(UserError, match=r"reward_normalisation in the config.json of .* is damaged"):
        main(str(folder), str(source), str(tmp_path / "again.jsonl"), normalise=True)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_probabilities_of_pairs(model, tmp_path, method):
    pairs = [{"prompt": "who ?", "chosen": a, "rejected": b} for a in WORDS[:6] for b in WORDS[:6] if a != b]
    known, source = write(tmp_path / "known.jsonl", [*pairs, *pairs[:7]]), write(tmp_path / "in.jsonl", [*GOOD, BAD[4]])
    main(model, str(source), str(tmp_path / "out.jsonl"), calibrate=str(known), calibration=method)
    rows = read(tmp_path / "out.jsonl")
    fit = json.loads((tmp_path / "out.calibration.json").read_text())
    assert fit["method"] == method
    assert fit["pairs"] == len(pairs) + 7
    assert fit["log_loss_after"] <= fit["log_loss_before"] + 1e-12
    gap = rows[0]["chosen_reward"] - rows[0]["rejected_reward"]
    if method == "temperature":
        assert rows[0]["probability"] == pytest.approx(1 / (1 + np.exp(-gap / fit["temperature"])))
    else:
        assert rows[0]["probability"] == pytest.approx(np.interp(gap, fit["gaps"], fit["probabilities"]))
    assert rows[3]["probability"] == pytest.approx(0.5)  # chosen and rejected are the same
    assert rows[4]["probability"] is None
    assert ["probability" in row for row in rows] == [True, False, False, True, True]


def test_mistakes_of_a_calibration(model, tmp_path):
    source = write(tmp_path / "in.jsonl", GOOD)
    known = write(tmp_path / "known.jsonl", [GOOD[1], GOOD[2], GOOD[0]])
    target = tmp_path / "out.jsonl"
    for options, message in [
        ({"calibration": "isotonic"}, r"--calibration isotonic needs pairs to fit it on"),
        ({"calibrate": str(known)}, r"--calibrate: .*known\.jsonl holds 1 pairs that can be scored"),
        ({"calibrate": "missing.jsonl"}, r"--calibrate: no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            main(model, str(source), str(target), **options)
    (tmp_path / "out.calibration.json").write_text("mine")
    with pytest.raises(UserError, match=r"out\.calibration\.json exists already"):
        main(model, str(source), str(target), calibrate=str(known))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "known.jsonl", "out.calibration.json"]
