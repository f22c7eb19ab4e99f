"""The command: what it writes of a real run, what it refuses, and that nothing half-done stays."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from huggingface_hub import constants, errors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from aplot_lightning import RewardModel, cli
from aplot_lightning.commands import export, score
from aplot_lightning.data.world import PreferenceWorld
from aplot_lightning.errors import RunError, UserError
from aplot_lightning.evaluation.report.card import Folder, model_card


def items(count: int) -> list[dict]:
    rows = [row for _, row in PreferenceWorld(pairs=count // 2, seed=8).rows()]
    return [{"prompt": row["prompt"], "response": row[side]} for row in rows for side in ("chosen", "rejected")]


def chat(item: dict) -> list[dict[str, str]]:
    return [{"role": "user", "content": item["prompt"]}, {"role": "assistant", "content": item["response"]}]


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export.main(str(finished_run), str(folder))
    return folder


# What is written


def test_a_real_run_is_scored_alike_by_score_and_by_transformers_alone(finished_run, exported, tmp_path):
    rows = items(200)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = []
    for name, model in (("run", finished_run), ("folder", exported)):
        score.main(str(model), str(tmp_path / "in.jsonl"), str(tmp_path / f"{name}.jsonl"))
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        scores.append(np.array([json.loads(line)["reward"] for line in lines]))
    assert len(scores[0]) == 200
    assert np.std(scores[0]) > 0.05
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)

    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    texts = [tokenizer.apply_chat_template(chat(row), tokenize=False) for row in rows]
    with torch.no_grad():
        plain = [
            model(**tokenizer(texts[at : at + 32], padding=True, return_tensors="pt")).logits
            for at in range(0, 200, 32)
        ]
    np.testing.assert_allclose(torch.cat(plain)[:, 0], scores[0], atol=1e-4)
    classify = pipeline("text-classification", model=str(exported), device="cpu", function_to_apply="none")
    np.testing.assert_allclose([each["score"] for each in classify(texts, batch_size=16)], scores[0], atol=1e-4)


def test_the_files_and_what_is_printed(finished_run, tmp_path, capsys):
    export.main(str(finished_run), str(tmp_path / "new" / "model"), max_length=40)
    out = capsys.readouterr().out
    assert out.startswith("exported LlamaForSequenceClassification in float32, rewards differ by up to ")
    assert out.endswith(f": {tmp_path / 'new' / 'model'}\n")
    names = sorted(path.name for path in (tmp_path / "new" / "model").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]
    assert RewardModel.from_pretrained(str(tmp_path / "new" / "model")).max_length == 40


def test_the_card_tells_what_the_run_tells(finished_run, exported):
    card = (exported / "README.md").read_text()
    metrics = json.loads((finished_run / "metrics.json").read_text())
    record = json.loads((finished_run / "run.json").read_text())
    low, high = metrics["ood"]["hard"]["ci95"]
    assert f"| hard | {metrics['ood']['hard']['accuracy']:.3f} | [{low:.3f}, {high:.3f}] | 41 |" in card
    assert f"| in distribution | {metrics['id']['accuracy']:.3f} |" in card
    for name, version in record["versions"].items():
        assert f"{name} {version}" in card
    assert record["objective"].split(",")[0] in card
    assert "--run_dir" in card
    assert "at most 64 tokens" in card
    prints = [
        source["sha256"]
        for entry in record["data"].values()
        for source in (entry if isinstance(entry, list) else [entry])
    ]
    assert prints
    assert all(f"| {each} |" in card for each in prints)
    header = card.split("---\n")[1]
    assert "\nlicense:" not in header
    assert "# license: to be filled in" in header


def test_a_checkpoint_other_than_the_best_has_no_figures(finished_run, tmp_path):
    export.main(str(finished_run / "checkpoints" / "last.ckpt"), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Figures" not in card
    assert "without a record of data" in card


def test_foreign_text_is_no_markup_in_the_card():
    folder = Folder("a|b `<b>`", "C", 1, "float32", None, "Reads.", (), {"x": "1"})
    card = model_card(folder, None, "runs/<script>|")
    assert "<script>" not in card
    assert "# a\\|b \\`&lt;b&gt;\\`" in card


def test_an_exported_folder_is_exported_again_as_it_is(exported, tmp_path):
    export.main(str(exported), str(tmp_path / "again"))
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        one, two = (json.loads((folder / file).read_text()) for folder in (exported, tmp_path / "again"))
        assert one.pop("attention_dropout", 0) in (0, 0.1)  # of the run; a folder is read without dropout
        assert two.pop("attention_dropout", 0) == 0
        assert two == one
    one, two = (
        AutoModelForSequenceClassification.from_pretrained(path).state_dict() for path in (exported, tmp_path / "again")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


# Mistakes


def refused(message: str, output: Path, model: object, **options) -> None:
    with pytest.raises(UserError, match=message) as caught:
        export.main(str(model), str(output), **options)
    assert "\n" not in str(caught.value)


def test_mistakes(finished_run, laboratory, tmp_path):
    out = tmp_path / "out"
    refused(r"^--model: .*missing\.ckpt' does not exist", out, tmp_path / "missing.ckpt")
    refused(r"^--model: .* holds no weights, so there is nothing", out, laboratory.folder / "backbone")
    refused(r"^--dtype 'float8' is unknown: choose one of float32", out, finished_run, dtype="float8")
    refused(r"^--max_length is 0: it must be at least 1", out, finished_run, max_length=0)
    refused(r"^--private true needs a repository", out, finished_run, private=True)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_in_the_way(finished_run, exported, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        refused(r"^--output: .* is a file or a link: name a folder$", tmp_path / name, finished_run, overwrite=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text('{"id2label": {"0": "GOOD"}}')
    refused(r"^--output: .*mine exists already: name another folder or add --overwrite true$", mine, finished_run)
    refused(r"^--output: .*mine holds other things than", mine, finished_run, overwrite=True)
    assert (mine / "config.json").read_text() == '{"id2label": {"0": "GOOD"}}'
    for own in (finished_run, finished_run / "checkpoints"):
        refused(r"^--output: .* is where the model itself lies", own, finished_run, overwrite=True)
    refused(r"^--output: .* is where the model itself lies", exported, exported, overwrite=True)
    refused(r"^--output: .* could not be written: File exists$", tmp_path / "file" / "below", finished_run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "mine"]


def test_an_exported_folder_is_replaced_as_a_whole_when_asked(finished_run, exported, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(exported, target)
    (target / "model-00002-of-00002.safetensors").write_text("of a larger model")
    refused("exists already", target, finished_run)
    export.main(str(finished_run), str(target), overwrite=True)
    assert len(list(target.iterdir())) == 5
    empty = tmp_path / "empty"
    empty.mkdir()
    export.main(str(finished_run), str(empty))  # nothing to lose
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "model"]


def test_a_failure_leaves_what_was_there(finished_run, exported, tmp_path, monkeypatch):
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    target = tmp_path / "model"
    shutil.copytree(exported, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    for error in (OSError(28, "No space left on device"), SafetensorError("Error: No space left on device")):

        def fail(self, folder, failure=error):
            (Path(folder) / "model.safetensors").write_text("half")
            raise failure

        monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
        refused(r"^--output: .*model could not be written: .*No space left", target, finished_run, overwrite=True)
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_without_reward_head_is_not_exported(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    from aplot_lightning.model.locate import ASSETS

    config = AutoConfig.from_pretrained(ASSETS / "world-decoder", hidden_size=16, intermediate_size=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "causal")
    AutoTokenizer.from_pretrained(ASSETS / "world-decoder").save_pretrained(tmp_path / "causal")
    refused(r"^--model: .* has no reward head, so there is nothing", tmp_path / "out", tmp_path / "causal")
    assert not (tmp_path / "out").exists()


# Nothing that is read is run


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["model.ckpt", "run/checkpoints/best.ckpt", "folder/pytorch_model.bin"])
def test_a_hostile_pickle_is_refused_unread(exported, tmp_path, name, zipped, capsys):
    path, touched = tmp_path / name, tmp_path / "touched"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"reward_model": {"format": 1}, "state_dict": {}, "other": Touch(touched)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    model = path if path.suffix == ".ckpt" and path.parent == tmp_path else tmp_path / name.split("/")[0]
    if path.suffix == ".bin":
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(exported / file, path.parent)
    for words in (
        ["export", "--model", str(model), "--output", str(tmp_path / "out")],
        [
            "score",
            "--model",
            str(model),
            "--input",
            str(tmp_path / "in.jsonl"),
            "--output",
            str(tmp_path / "out.jsonl"),
        ],
    ):
        (tmp_path / "in.jsonl").write_text(json.dumps(items(2)[0]) + "\n")
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("aplot: --model: ")
        assert said.count("\n") == 1
        assert not touched.exists()
    pickle.loads(pickle.dumps(Touch(touched)))
    assert touched.exists()  # it would have


# The hub


class Hub:
    """Stands in for huggingface_hub's client."""

    calls: ClassVar[list[tuple]] = []
    role, failure = "write", None

    def whoami(self):
        if isinstance(self.failure, errors.LocalTokenNotFoundError | ConnectionError):
            raise self.failure
        return {"name": "me", "auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, name, *, private, exist_ok):
        self.calls.append(("create", name, private))
        return type("Url", (str,), {"repo_id": f"me/{name}"})(f"https://hub/me/{name}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
        if self.failure:
            raise self.failure


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "calls", [])
    return monkeypatch


def test_pushing(finished_run, tmp_path, hub, capsys):
    export.main(str(finished_run), str(tmp_path / "out"), push_to_hub="judge", private=True)
    files = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert Hub.calls == [("create", "judge", True), ("upload", "me/judge", files)]
    assert capsys.readouterr().out.splitlines()[-1] == "pushed: https://hub/me/judge"
    assert (tmp_path / "out" / "README.md").read_text().count("'judge'") >= 3


def test_a_push_that_cannot_be_is_refused_before_anything_is_written(finished_run, tmp_path, hub):
    out = tmp_path / "out"
    refused(r"^--push_to_hub: '\.\./x' is no hub name", out, finished_run, push_to_hub="../x")
    hub.setattr(Hub, "failure", errors.LocalTokenNotFoundError("Token is required"))
    refused(r"^--push_to_hub: there is no login to the hub: log in by", out, finished_run, push_to_hub="x")
    hub.setattr(Hub, "failure", ConnectionError("Name or service not known"))
    refused(r"^--push_to_hub: the hub cannot be reached \(Name or service", out, finished_run, push_to_hub="x")
    hub.setattr(Hub, "failure", None)
    hub.setattr(Hub, "role", "read")
    refused(r"^--push_to_hub: the login may only read: log in by", out, finished_run, push_to_hub="x")
    hub.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(r"^--push_to_hub: HF_HUB_OFFLINE is set", out, finished_run, push_to_hub="x")
    assert Hub.calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_push_that_is_cut_off_keeps_the_folder(finished_run, tmp_path, hub):
    hub.setattr(Hub, "failure", OSError("connection reset"))
    with pytest.raises(
        RunError, match=r"^--push_to_hub: x was not uploaded \(connection reset\), the folder is kept; again: hf"
    ):
        export.main(str(finished_run), str(tmp_path / "out"), push_to_hub="x")
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_mistakes_do_not_wait_for_torch():
    code = """if True:
        import sys
        from jsonargparse import ArgumentParser
        from aplot_lightning.commands.export import main
        ArgumentParser().add_function_arguments(main)
        try: main("missing.ckpt", "out")
        except Exception as error: print(type(error).__name__, "torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["UserError", "False"], done.stderr
