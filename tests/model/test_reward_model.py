"""The reward model against plain Transformers, one unpadded forward a conversation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from aplot_lightning.data.batching import pad_rows
from aplot_lightning.data.comparisons import conversation_of
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.errors import UserError
from aplot_lightning.model.heads import (
    MLP,
    Bottleneck,
    Ensemble,
    Linear,
    QualityAndLength,
    WithConfidence,
    WithVariance,
)
from aplot_lightning.model.reward_model import RewardModel
from aplot_lightning.types import Batch, Pairs

FAMILIES = ["bert", "deberta-v2", "distilbert", "gpt2", "llama", "qwen2", "roberta"]


def rows_of(model, items):
    return model.encode([conversation_of(item["prompt"], item["response"]) for item in items])


def batch_of(rows, pad_id):
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(*pad_rows(rows, pad_id), Pairs(nothing, nothing))


@torch.no_grad()
def plain_rewards(folder, rows):
    """Transformers alone, each row on its own and without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None  # else Transformers passes over a last token that equals it
    return [model(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits.item() for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_are_those_of_plain_transformers(saved, items, family):
    model = RewardModel.from_pretrained(str(saved(family)))
    rows = rows_of(model, items)
    expected = plain_rewards(saved(family), rows)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(model.score(items), expected, atol=1e-5)


@pytest.mark.parametrize("pad_id", [0, 1, 7])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "roberta"])  # it counts positions by pad
def test_the_pad_id_does_not_matter(saved, items, family, pad_id):
    model = RewardModel.from_pretrained(str(saved(family)))
    rows = rows_of(model, items)
    with torch.no_grad():
        rewards = model(batch_of(rows, pad_id)).rewards
    np.testing.assert_allclose(rewards, plain_rewards(saved(family), rows), atol=1e-5)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 3}, {"batch_tokens": 60}, {"batch_tokens": 1}])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_scores_do_not_depend_on_batches_or_order(saved, items, family, options):
    model = RewardModel.from_pretrained(str(saved(family)))
    expected = np.asarray(model.score(items))
    tolerance = 1e-5 * np.ptp(expected)
    np.testing.assert_allclose(model.score(items, **options), expected, atol=tolerance)
    np.testing.assert_allclose(model.score(items[::-1], **options)[::-1], expected, atol=tolerance)


def test_the_scored_token_is_read_where_pad_equals_end(saved, items):
    model = RewardModel.from_pretrained(str(saved("gpt2")))
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    rows = rows_of(model, items)
    assert all(row[-1] == model.tokenizer.eos_token_id for row in rows)
    # cutting the last token, which a search for the last token that is no padding would do, changes every reward
    assert np.abs(np.subtract(model.score_rows(rows), model.score_rows([row[:-1] for row in rows]))).min() > 1e-4


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_mean_pooling(saved, items, family):
    model = RewardModel.from_backbone(str(saved(family)), pooling="mean").eval()
    rows = rows_of(model, items)
    plain = AutoModel.from_pretrained(saved(family)).eval()
    with torch.no_grad():
        scores = model(batch_of(rows, 3))
        for place, row in enumerate(rows):
            states = plain(input_ids=torch.from_numpy(row.astype(np.int64))[None]).last_hidden_state[0].numpy()
            mean = sum(states[token] for token in range(len(row))) / len(row)
            np.testing.assert_allclose(scores.embeddings[place], mean, atol=1e-5)
            reward = mean @ model.head.weight.numpy()[0] + (0 if model.head.bias is None else model.head.bias.item())
            assert scores.rewards[place].item() == pytest.approx(reward, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_backbone_gives_float32_rewards(saved, items, family):
    exact = RewardModel.from_pretrained(str(saved(family)))
    model = RewardModel.from_pretrained(str(saved(family)), dtype="bfloat16")
    assert next(model.backbone.parameters()).dtype == torch.bfloat16
    assert model.head.weight.dtype == torch.float32
    scores = model(batch_of(rows_of(model, items), 0))
    assert scores.rewards.dtype == scores.embeddings.dtype == torch.float32
    expected = np.asarray(exact.score(items))
    np.testing.assert_allclose(model.score(items), expected, atol=0.1 * np.abs(expected).max())


def test_auto_takes_the_dtype_that_was_saved(saved, tmp_path):
    RewardModel.from_backbone(str(saved("llama"))).backbone.model.bfloat16().save_pretrained(tmp_path / "model")
    for file in saved("llama").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "model")
    model = RewardModel.from_backbone(str(tmp_path / "model"), dtype="auto")
    assert (model.dtype, next(model.backbone.parameters()).dtype) == ("bfloat16", torch.bfloat16)
    assert RewardModel.from_backbone(str(tmp_path / "model")).dtype == "float32"
    assert RewardModel.from_description(model.describe(), dtype="auto").dtype == "bfloat16"


def test_autocast_ends_before_the_head(saved, items):
    model = RewardModel.from_pretrained(str(saved("llama")))
    batch = batch_of(rows_of(model, items), 0)
    exact = model.score(items)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(batch)
        assert model.score(items) == exact
    assert not torch.equal(scores.rewards, torch.tensor(exact))
    assert scores.rewards.dtype == scores.embeddings.dtype == torch.float32
    expected = scores.embeddings @ model.head.weight[0]
    torch.testing.assert_close(scores.rewards, expected, rtol=1e-6, atol=1e-6)  # a bfloat16 head is off by 1e-3


def test_gradients_reach_every_weight_and_are_those_of_transformers(saved, items):
    model = RewardModel.from_backbone(str(saved("llama")))
    rows = rows_of(model, items)
    model(batch_of(rows, 0)).rewards.square().sum().backward()
    plain = AutoModelForSequenceClassification.from_pretrained(saved("llama"))
    for row in rows:
        plain(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits.square().sum().backward()
    torch.testing.assert_close(model.head.weight.grad, plain.score.weight.grad, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(model.backbone.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_unless_asked_for(saved, items, family):
    model = RewardModel.from_backbone(str(saved(family)))
    batch = batch_of(rows_of(model, items), 0)
    assert model.training
    assert torch.equal(model(batch).rewards, model(batch).rewards)
    model = RewardModel.from_backbone(str(saved(family)), dropout=0.3)
    assert not torch.equal(model(batch).rewards, model(batch).rewards)
    model.eval()
    assert torch.equal(model(batch).rewards, model(batch).rewards)


def test_scoring_leaves_the_training_mode_alone(saved, items):
    model = RewardModel.from_backbone(str(saved("bert")), dropout=0.3)
    assert model.score(items) == model.score(items)
    assert model.training
    assert RewardModel.from_pretrained(str(saved("bert"))).training is False


def write_checkpoint(model, path):
    state = {f"reward_model.{name}": value for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "reward_model": model.describe(), "global_step": 1}, path)


@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_needs_no_folder(saved, items, tmp_path, family, pooling):
    folder = shutil.copytree(saved(family), tmp_path / "folder")
    model = RewardModel.from_backbone(str(folder), pooling=pooling, max_length=50)
    write_checkpoint(model, tmp_path / "run/checkpoints/best.ckpt")
    shutil.rmtree(folder)
    again = RewardModel.from_pretrained(str(tmp_path / "run"))
    assert again.score(items) == model.score(items)
    assert (again.max_length, again.pooling, again.hidden_size) == (50, model.pooling, model.hidden_size)
    assert again.parameter_count == model.parameter_count
    assert RewardModel.from_pretrained(str(tmp_path / "run"), max_length=7).max_length == 7
    warm = RewardModel.from_backbone(str(tmp_path / "run"), dropout=0.2, dtype="bfloat16")
    assert warm.training
    assert next(warm.backbone.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(warm.head.weight, model.head.weight)


def test_a_description_alone_builds_fresh_weights(saved):
    model = RewardModel.from_backbone(str(saved("llama")))
    fresh = RewardModel.from_description(model.describe(), dtype="bfloat16")
    assert {n: v.shape for n, v in fresh.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}
    assert fresh.dtype == "bfloat16"
    assert all(torch.isfinite(value).all() for value in fresh.state_dict().values())


def test_a_checkpoint_with_other_pooling_is_not_bent(saved, tmp_path):
    write_checkpoint(RewardModel.from_backbone(str(saved("llama"))), tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"model\.pooling: .* was trained with last; leave it at auto"):
        RewardModel.from_backbone(str(tmp_path / "a.ckpt"), pooling="mean")


def test_damaged_descriptions_and_weights_are_named(saved, tmp_path):
    model = RewardModel.from_backbone(str(saved("llama")))
    path = tmp_path / "a.ckpt"
    for change in ({"config": {"model_type": "nothing"}}, {"head": {"kind": "odd"}}, {"tokenizer": {}}, {"dtype": 5}):
        torch.save({"state_dict": {}, "reward_model": {**model.describe(), **change}}, path)
        with pytest.raises(UserError):
            RewardModel.from_pretrained(str(path), dtype=None)
    torch.save({"state_dict": {}, "reward_model": model.describe()}, path)
    with pytest.raises(UserError, match=r"a\.ckpt: the checkpoint's weights do not fit its model"):
        RewardModel.from_pretrained(str(path))


def test_a_model_without_reward_head_gets_one_from_a_fixed_seed(saved, items):
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        with pytest.warns(UserWarning, match="has no reward head: a fresh start from seed 0 stands in"):
            scores.append(RewardModel.from_pretrained(str(saved("bert", 3))).score(items))
        assert torch.equal(torch.get_rng_state(), state)
    assert scores[0] == scores[1]


def test_a_missing_pooler_too_comes_from_the_fixed_seed(saved, items, tmp_path):
    folder = shutil.copytree(saved("roberta"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with pytest.warns(UserWarning, match="no reward head"):
            scores.append(RewardModel.from_pretrained(str(folder)).score(items))
    assert scores[0] == scores[1]


def test_a_fresh_head_to_train_follows_the_seed(saved):
    def weight(seed, **options):
        torch.manual_seed(seed)
        return RewardModel.from_backbone(str(saved("bert", 3)), **options).head.weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))
    assert torch.equal(weight(1, head_seed=7), weight(2, head_seed=7))


def test_a_folder_without_weights_starts_from_scratch(saved, items):
    folder = str(saved("llama", None))
    torch.manual_seed(4)
    first = RewardModel.from_backbone(folder)
    torch.manual_seed(4)
    assert RewardModel.from_backbone(folder).score(items) == first.score(items)
    assert RewardModel.from_backbone(folder).score(items) != first.score(items)
    with pytest.warns(UserWarning, match="has no weights"):
        RewardModel.from_pretrained(folder)


def test_the_built_in_decoder(items):
    model = RewardModel.from_backbone("world-decoder")
    assert model.pooling == "last"
    assert len(set(model.score(items))) == len(items)


def test_lengths(saved, items):
    model = RewardModel.from_backbone(str(saved("roberta")))
    assert model.max_length == 129  # 130 positions, of which RoBERTa spends one on its pad id 0
    with pytest.raises(UserError, match=r"max_length is 500, but .* has 129 positions: set it to 129 or less"):
        model.max_length = 500
    with pytest.raises(UserError, match="max_length is 0: it must be at least 1"):
        RewardModel.from_backbone(str(saved("llama")), max_length=0)
    model.max_length = 9
    assert max(len(row) for row in rows_of(model, items)) == 9


def test_mistakes_are_one_line(saved, tmp_path):
    small = json.loads((saved("llama") / "config.json").read_text())
    broken = shutil.copytree(saved("llama"), tmp_path / "broken")
    (broken / "config.json").write_text("{")
    unknown = shutil.copytree(saved("llama"), tmp_path / "unknown")
    (unknown / "config.json").write_text(json.dumps({**small, "model_type": "nobody"}))
    narrow = shutil.copytree(saved("llama", None), tmp_path / "narrow")
    (narrow / "config.json").write_text(json.dumps({**small, "vocab_size": 5}))
    odd = shutil.copytree(saved("llama", None), tmp_path / "odd")
    (odd / "config.json").write_text(json.dumps({**small, "hidden_act": "nothing"}))
    for name, message in {
        "/no/such/folder": "does not exist; give a run directory",
        "nobody/nothing": "is not on this disk and the model hub did not give it",
        str(broken): "the config.json of .* could not be read",
        str(unknown): "the config.json of .* could not be read",
        str(narrow): "has ids up to .*, but the backbone embeds 5",
        str(odd): "llama could not be built",
    }.items():
        with pytest.raises(UserError, match=rf"^model\.backbone: .*{message}") as caught:
            RewardModel.from_backbone(name)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_items_are_checked(saved):
    model = RewardModel.from_pretrained(str(saved("llama")))
    assert model.score([]) == []
    with pytest.raises(UserError, match=r"items\[1\] needs a prompt and a response"):
        model.score([{"prompt": "who ?", "response": "no"}, {"prompt": "who ?"}])


def test_remote_code_is_never_run(saved, tmp_path):
    folder = shutil.copytree(saved("llama"), tmp_path / "model")
    witness = tmp_path / "witness"
    (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    names = dict.fromkeys(["AutoConfig", "AutoModel", "AutoModelForSequenceClassification"], "evil.Evil")
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    RewardModel.from_pretrained(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names, "model_type": "evil"}))
    with pytest.raises(UserError, match="could not be read"):
        RewardModel.from_pretrained(str(folder))
    assert not witness.exists()


def test_nothing_is_written_to_the_terminal(saved):
    code = (
        f"from aplot_lightning.model.reward_model import RewardModel as R; R.from_backbone({str(saved('bert', 3))!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_real_models_score_the_same_for_every_batch(name):
    """Run with APLOT_MODELS=a folder that holds minilm and smollm2."""
    if "APLOT_MODELS" not in os.environ:
        pytest.skip("APLOT_MODELS (a folder with minilm and smollm2) is not set")
    folder = Path(os.environ["APLOT_MODELS"]) / name
    with pytest.warns(UserWarning, match="no reward head"):
        model = RewardModel.from_pretrained(str(folder))
    nn.init.normal_(model.head.weight)
    prompts = ["What is the capital of France?", "Tell me about the sea. " * 9, "Hi!"]
    answers = [
        "Paris.",
        "No.",
        "It is large, and deep, and blue. " * 5,
        "I do not know 🙂",
        "What?",
        "Ask again later. " * 30,
    ]
    items = [{"prompt": prompt, "response": answer} for prompt in prompts for answer in answers]
    alone = np.asarray(model.score(items, batch_size=1))
    for scores in (model.score(items, batch_size=12), model.score(items[::-1], batch_size=12)[::-1]):
        assert np.abs(np.asarray(scores) - alone).max() <= 1e-3 * np.ptp(alone)


HEADS = {
    "mlp": MLP(hidden_size=5, layers=2, activation="gelu"),
    "with_variance": WithVariance(),
    "with_confidence": WithConfidence(),
    "quality_and_length": QualityAndLength(),
    "ensemble": Ensemble(members=2),
    "bottleneck": Bottleneck(dimension=3),
}


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("kind", HEADS)
def test_every_head_scores_from_its_checkpoint_as_in_evaluation(saved, items, tmp_path, kind, family):
    model = RewardModel.from_backbone(str(saved(family)), head=HEADS[kind], head_seed=3)
    batch = batch_of(rows_of(model, items), 0)
    assert set(model(batch).tensors) == model.tensor_names
    assert not model.head_is_linear
    model.eval()
    with torch.no_grad():
        expected = model(batch).rewards
    write_checkpoint(model, tmp_path / "a.ckpt")
    again = RewardModel.from_pretrained(str(tmp_path / "a.ckpt"))
    assert again.describe() == model.describe()
    assert again.score(items) == model.score(items)
    np.testing.assert_allclose(again.score(items, batch_size=2), expected, rtol=1e-4, atol=1e-5)
    fresh = RewardModel.from_description(model.describe())
    assert {n: v.shape for n, v in fresh.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}
    assert fresh.head.describe() == model.head.describe()
    assert len(set(fresh.score(items))) > 1


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_stays_float32_on_a_bfloat16_backbone(saved, items, kind):
    model = RewardModel.from_backbone(str(saved("llama")), head=HEADS[kind], dtype="bfloat16").to(torch.bfloat16)
    scores = model(batch_of(rows_of(model, items), 0))
    assert {value.dtype for value in scores.tensors.values()} == {torch.float32}
    assert {value.dtype for value in model.head.state_dict().values()} == {torch.float32}


def test_a_checkpoint_keeps_its_head_unless_another_is_asked_for(saved, items, tmp_path):
    model = RewardModel.from_backbone(str(saved("llama")), head=Ensemble(2), head_seed=3)
    write_checkpoint(model, tmp_path / "a.ckpt")

    def warm(head):
        return RewardModel.from_backbone(str(tmp_path / "a.ckpt"), head=head, head_seed=5)

    for head in (None, Ensemble(2)):
        assert warm(head).score(items) == model.score(items)
    for head, kind in ((Ensemble(3), "ensemble"), (MLP(), "mlp"), (Linear(), "linear")):
        other = warm(head)
        assert other.head.kind == kind
        assert other.score(items) == warm(head).score(items) != model.score(items)
        for name, value in other.backbone.state_dict().items():
            assert torch.equal(value, model.backbone.state_dict()[name])
    assert warm(Linear()).head_is_linear
    # a folder's own linear head is kept where a linear one is asked for
    plain = RewardModel.from_backbone(str(saved("llama")))
    assert RewardModel.from_backbone(str(saved("llama")), head=Linear()).score(items) == plain.score(items)


def test_names_of_the_linear_head_and_old_descriptions(saved, items):
    model = RewardModel.from_backbone(str(saved("bert")))
    assert model.tensor_names == {"rewards", "embeddings"}
    assert model.head_is_linear
    old = {key: value for key, value in model.describe().items() if key != "keep_lm_head"}
    assert old["head"] == {"kind": "linear", "in_features": 32, "bias": True}
    assert RewardModel.from_description(old, model.state_dict()).eval().score(items) == model.score(items)


def test_an_unknown_head_in_a_checkpoint_is_named(saved, tmp_path):
    model = RewardModel.from_backbone(str(saved("llama")))
    for head in ({"kind": "os.system", "in_features": 32, "bias": False}, {**model.head.describe(), "command": "x"}):
        content = {"state_dict": {}, "reward_model": {**model.describe(), "head": head}}
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(UserError, match="description of its model is damaged") as caught:
            RewardModel.from_pretrained(str(tmp_path / "a.ckpt"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("policy", "cut"), [("left", "left"), ("right", "right"), ("drop", "left")])
def test_conversations_are_cut_as_in_training(saved, tmp_path, policy, cut):
    model = RewardModel.from_backbone(str(saved("llama")), max_length=24)
    model.truncation = policy
    write_checkpoint(model, tmp_path / "last.ckpt")
    conversation = conversation_of("a question that is long " * 2, "an answer that is long " * 9)
    if policy != "right":
        conversation = conversation_of("a question that is long " * 9, "short")
    row = RewardModel.from_pretrained(str(tmp_path / "last.ckpt")).encode([conversation])[0]
    assert (
        row.tolist() == ConversationEncoder(model.tokenizer, 24, cut).encode_conversations([conversation])[0].tolist()
    )
    assert len(row) <= 24
