from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from aplot_lightning.commands import score
from aplot_lightning.commands.average import average_weights, main
from aplot_lightning.errors import UserError
from aplot_lightning.model.heads import MLP
from aplot_lightning.model.reward_model import RewardModel

WORDS = ["the", "cat", "dog", "sat", "who", "what", "is", "yes", "no", "?"]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eos>{% endfor %}"
ITEMS = [{"prompt": "who is ?", "response": text} for text in ("the cat", "no", "the dog sat", "yes yes")]


def backbone(folder: Path, words=WORDS, **sizes) -> str:
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", "<user>", "<assistant>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **sizes}
    config = AutoConfig.for_model("llama", vocab_size=20, num_labels=1, initializer_range=0.3, **sizes)
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def save_run(folder: Path, model: RewardModel) -> str:
    """A run directory with what a checkpoint of fit holds of its model and of other things."""
    state = {f"reward_model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["objective.weighting.average"] = torch.ones(())
    (folder / "checkpoints").mkdir(parents=True)
    content = {"state_dict": state, "reward_model": model.describe(), "global_step": 3, "optimizer_states": [{}]}
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return str(folder)


def moved(model: RewardModel, seed: int) -> RewardModel:
    """As if trained from there."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def runs(start, tmp_path_factory) -> list[str]:
    """Three runs from one backbone; the second with dropout and the third with another max_length."""
    folder = tmp_path_factory.mktemp("runs")
    options = [{}, {"dropout": 0.1}, {"max_length": 40}]
    return [
        save_run(folder / str(seed), moved(RewardModel.from_backbone(start, **given), seed))
        for seed, given in enumerate(options)
    ]


def weights(run: str) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in RewardModel.from_pretrained(run).state_dict().items()}


def test_every_weight_is_the_mean(runs, tmp_path, capsys):
    main(runs, str(tmp_path / "averaged"))
    assert capsys.readouterr().out == f"averaged 3 models: {tmp_path / 'averaged' / 'checkpoints' / 'best.ckpt'}\n"
    found, each = weights(str(tmp_path / "averaged")), [weights(run) for run in runs]
    assert found.keys() == each[0].keys()
    for name, values in found.items():
        mean = np.mean([one[name].astype(np.float64) for one in each], axis=0).astype(np.float32)
        np.testing.assert_array_equal(values, mean)
    assert [path.name for path in (tmp_path / "averaged" / "checkpoints").iterdir()] == ["best.ckpt"]


def test_the_average_is_what_warm_averages_for_linear_heads(start, tmp_path):
    """With one backbone and heads that differ, the average's reward is the mean of the rewards."""
    each = []
    for seed in range(2):
        model = RewardModel.from_backbone(start)
        with torch.no_grad():
            model.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
        each.append(save_run(tmp_path / str(seed), model))
    main(each, str(tmp_path / "average.ckpt"))
    rewards = [RewardModel.from_pretrained(run).score(ITEMS) for run in each]
    average = RewardModel.from_pretrained(str(tmp_path / "average.ckpt")).score(ITEMS)
    np.testing.assert_allclose(average, np.mean(rewards, axis=0), atol=1e-6)


def test_score_and_a_warm_start_read_the_average(runs, tmp_path):
    averaged = tmp_path / "averaged"
    main(runs[:2], str(averaged))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    score.main(str(averaged), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    rows = [json.loads(line)["reward"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    started = RewardModel.from_backbone(str(averaged))
    assert started.training
    assert rows == pytest.approx(started.score(ITEMS), abs=1e-6)
    again = save_run(tmp_path / "again", moved(started, 7))  # a run that started from the average
    main([again, runs[0]], str(tmp_path / "more.ckpt"))


def test_an_average_of_one_model_with_itself_is_that_model(runs, tmp_path):
    main([runs[0], runs[0], runs[0]], str(tmp_path / "same.ckpt"))
    before, after = weights(runs[0]), weights(str(tmp_path / "same.ckpt"))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_half_precision_is_summed_in_double_and_rounded_once():
    states = [{"w": torch.tensor([256.0, 1.0], dtype=torch.bfloat16), "n": torch.tensor(3)}]
    states += [{"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "n": torch.tensor(4)} for _ in range(3)]
    average = average_weights(states)
    assert average["w"].dtype == torch.bfloat16
    assert average["w"].tolist() == [65.0, 1.75]  # 64.75 to even; bfloat16 sums stop at 256
    assert average["n"].item() == 3
    assert states[0]["w"].tolist() == [256.0, 1.0]


def refused(models, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        main(models, str(tmp_path / "average.ckpt"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "average.ckpt").exists()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ({"hidden_size": 32}, r"differ in their architecture \(.*hidden_size.*\); only runs of one architecture"),
        ({"rope_theta": 77.0}, r"differ in their architecture \(rope_"),
        ({"words": [*WORDS[::-1]]}, r"differ in their tokenizer; only runs of one"),
    ],
)
def test_another_architecture_or_tokenizer_is_refused(runs, tmp_path, build, message):
    other = save_run(tmp_path / "other", RewardModel.from_backbone(backbone(tmp_path / "b", **build)))
    refused([runs[0], other], message, tmp_path)


def test_another_head_or_pooling_is_refused(runs, start, tmp_path):
    other = save_run(tmp_path / "head", RewardModel.from_backbone(start, head=MLP()))
    refused([*runs, other], r"differ in their head; only", tmp_path)
    other = save_run(tmp_path / "mean", RewardModel.from_backbone(start, pooling="mean"))
    refused([runs[0], other], r"differ in their pooling; only", tmp_path)


def test_other_names_of_weights_are_refused(runs, tmp_path):
    content = torch.load(Path(runs[0]) / "checkpoints" / "best.ckpt", weights_only=True)
    del content["state_dict"]["reward_model.head.weight"]
    torch.save(content, tmp_path / "cut.ckpt")
    refused([runs[0], str(tmp_path / "cut.ckpt")], "differ in the names or shapes of their weights", tmp_path)


def test_mistakes(runs, start, tmp_path):
    refused(runs[:1], r"^--models names 1 of the two or more models", tmp_path)
    refused([], r"^--models names 0 of", tmp_path)
    refused([runs[0], str(tmp_path / "missing.ckpt")], r"^--models: .*missing\.ckpt' does not exist", tmp_path)
    refused([runs[0], start], r"^--models: .* is no run and no checkpoint file", tmp_path)


def test_outputs_that_are_in_the_way(runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.ckpt").mkdir()
    for output in ("file", "folder.ckpt"):
        with pytest.raises(UserError, match=r"^--output: .* is in the way: name a folder, or a file that ends in"):
            main(runs, str(tmp_path / output), overwrite=True)
    with pytest.raises(UserError, match=r"^--output: .* is one of the models that are averaged"):
        main(runs, runs[1], overwrite=True)
    target = tmp_path / "average.ckpt"
    target.write_text("mine")
    with pytest.raises(UserError, match=r"^--output: .*average\.ckpt exists already: .* --overwrite true"):
        main(runs, str(target))
    assert target.read_text() == "mine"
    main(runs, str(target), overwrite=True)
    RewardModel.from_pretrained(str(target))
    with pytest.raises(UserError, match=r"^--output: .* could not be written: File exists"):
        main(runs, str(tmp_path / "file" / "below.ckpt"))


def test_a_failure_leaves_nothing_behind(runs, tmp_path, monkeypatch):
    def fail(content, path):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    target = tmp_path / "average.ckpt"
    target.write_text("mine")
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"^--output: .*average\.ckpt could not be written: No space left on device$"):
        main(runs, str(target), overwrite=True)
    assert target.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["average.ckpt"]


def test_real_runs_of_fit_are_averaged(finished_run, tmp_path):
    """Another run of the same data would do; its last and its best checkpoint are two models of one architecture."""
    shutil.copy(finished_run / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt")
    main([str(finished_run), str(tmp_path / "last.ckpt")], str(tmp_path / "average"))
    each = [weights(str(finished_run)), weights(str(tmp_path / "last.ckpt"))]
    for name, values in weights(str(tmp_path / "average")).items():
        np.testing.assert_allclose(values, (each[0][name] + each[1][name]) / 2, atol=1e-7)


def test_mistakes_do_not_wait_for_torch():
    code = """if True:
        import sys
        from jsonargparse import ArgumentParser
        from aplot_lightning.commands.average import main
        ArgumentParser().add_function_arguments(main)
        try: main(["missing.ckpt", "other.ckpt"], "out.ckpt")
        except Exception as error: print(type(error).__name__, "torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["UserError", "False"], done.stderr
