"""Oracle: AutoModelForCausalLM's own loss on one unpadded response, with labels on the response's tokens alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from aplot_lightning.errors import UserError
from aplot_lightning.model import language_head
from aplot_lightning.model.heads import QualityAndLength
from aplot_lightning.model.reward_model import RewardModel
from aplot_lightning.types import Batch, Pairs

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 1}
FAMILIES = {
    "llama": {**SIZES, "tie_word_embeddings": False},
    "qwen2": {**SIZES, "tie_word_embeddings": True},
    "gpt2": GPT2,  # tied, another name for its base model
    "gemma2": {**SIZES, "head_dim": 8, "final_logit_softcapping": 0.7, "tie_word_embeddings": True},
    "granite": {**SIZES, "logits_scaling": 3.0, "tie_word_embeddings": False},
    "phi": {**SIZES, "tie_word_embeddings": False},  # its head has a bias
}
TIED = ["qwen2", "gpt2", "gemma2"]
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def causal(tmp_path_factory, saved):
    """causal(family) -> the folder of a tiny causal language model, made once."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            with torch.random.fork_rng():
                torch.manual_seed(len(family))
                config = AutoConfig.for_model(family, vocab_size=64, initializer_range=0.2, **FAMILIES[family])
                model = AutoModelForCausalLM.from_config(config)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(0.05 * torch.randn_like(parameter))
                model.save_pretrained(folder)
            for file in saved("llama").glob("*"):
                if "token" in file.name or "template" in file.name:
                    shutil.copy(file, folder)
            made[family] = folder
        return made[family]

    return get


LENGTHS, STARTS = [9, 14, 6, 11, 3], [4, 2, 5, 10, 1]
CHOSEN, REJECTED = [1, 3, 1, 2], [0, 2, 4, 0]  # row 1 is chosen twice; 0 and 4 never
CHOSEN_ROWS = [1, 2, 3]


def batch_of(pad: int = 0, paired: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(2)
    ids = torch.full((5, 15), pad)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(2, 64, (length,), generator=generator)
    mask = (torch.arange(15) < torch.tensor(LENGTHS)[:, None]).long()
    pairs = Pairs(torch.tensor(CHOSEN), torch.tensor(REJECTED), {"index": torch.arange(4)})
    if not paired:
        pairs = pairs.select(torch.zeros(0, dtype=torch.int64))
    return Batch(ids, mask, torch.tensor(LENGTHS) - 1, pairs, torch.tensor(STARTS))


def plain_log_probabilities(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Transformers alone: minus its mean loss over the response's tokens, times their number; one row at a time."""
    values = []
    for row, (length, start) in enumerate(zip(LENGTHS, STARTS, strict=True)):
        ids = batch.input_ids[row : row + 1, :length]
        labels = ids.clone()
        labels[:, :start] = -100
        values.append(-model(input_ids=ids, labels=labels, use_cache=False).loss * (length - start))
    return torch.stack(values)


def model_of(folder: Path, **options) -> RewardModel:
    return RewardModel.from_backbone(str(folder), keep_lm_head=True, head_seed=1, **options)


@every_family
def test_values_and_gradients_are_those_of_transformers(causal, family: str) -> None:
    model, batch = model_of(causal(family)), batch_of()
    plain = AutoModelForCausalLM.from_pretrained(causal(family)).eval()
    expected = plain_log_probabilities(plain, batch)
    scores = model(batch)
    assert set(scores.tensors) == model.tensor_names == {"rewards", "embeddings", "log_probability"}
    found = scores.tensors["log_probability"]
    assert (found.shape, found.dtype) == ((5,), torch.float32)
    torch.testing.assert_close(found[CHOSEN_ROWS], expected[CHOSEN_ROWS], rtol=1e-4, atol=1e-4)
    assert found[[0, 4]].tolist() == [0.0, 0.0]
    assert (found[CHOSEN_ROWS] < -1).all()
    weights = torch.tensor([0.3, -1.0, 2.0, 0.5, 7.0])
    (found * weights).sum().backward()
    (expected[CHOSEN_ROWS] * weights[CHOSEN_ROWS]).sum().backward()
    for ours, theirs in (
        (model.backbone.model, plain.base_model),
        (model.backbone.lm_head.causal.lm_head, plain.lm_head),
    ):
        gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
        assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
        expected_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_head_in_parts_is_the_same(causal, family: str, monkeypatch) -> None:
    results = []
    for chunk in (1024, 4):
        monkeypatch.setattr(language_head, "CHUNK", chunk)
        model = model_of(causal(family))
        found = model(batch_of()).tensors["log_probability"]
        (found * torch.arange(5)).sum().backward()
        results.append([found.detach(), *[parameter.grad for parameter in model.backbone.parameters()]])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_only_the_chosen_responses_go_through_the_vocabulary(causal) -> None:
    model, rows = model_of(causal("llama")), []
    model.backbone.lm_head.causal.lm_head.register_forward_hook(lambda *call: rows.append(call[2].shape[-2]))
    model(batch_of())
    assert rows == [sum(LENGTHS[row] - STARTS[row] for row in CHOSEN_ROWS)]


def test_a_batch_without_pairs_keeps_the_graph_whole(causal) -> None:
    model = model_of(causal("llama"))
    found = model(batch_of(paired=False)).tensors["log_probability"]
    assert found.tolist() == [0.0] * 5
    (found * 3).sum().backward()
    assert model.backbone.lm_head.causal.lm_head.weight.grad.abs().sum() == 0


def test_a_response_without_prompt_leaves_its_first_token_out(causal) -> None:
    model, batch = model_of(causal("llama")), batch_of()
    expected = model(batch).tensors["log_probability"]
    batch.start = torch.tensor([4, 2, 5, 10, 0])
    batch.pairs.chosen[0] = 4
    found = model(batch).tensors["log_probability"]
    ids = batch.input_ids[4:, :3]
    loss = AutoModelForCausalLM.from_pretrained(causal("llama"))(input_ids=ids, labels=ids).loss
    assert found[4].item() == pytest.approx(-2 * loss.item(), rel=1e-4)
    torch.testing.assert_close(found[2:4], expected[2:4])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_and_order_do_not_matter(causal, family: str) -> None:
    model, batch = model_of(causal(family)), batch_of()
    expected = model(batch).tensors["log_probability"]
    torch.testing.assert_close(model(batch_of(pad=9)).tensors["log_probability"], expected)
    order = torch.tensor([3, 1, 4, 0, 2])
    rank = torch.argsort(order)
    pairs = Pairs(rank[batch.pairs.chosen], rank[batch.pairs.rejected], batch.pairs.columns)
    shuffled = Batch(batch.input_ids[order], batch.attention_mask[order], batch.end[order], pairs, batch.start[order])
    torch.testing.assert_close(model(shuffled).tensors["log_probability"], expected[order], rtol=1e-4, atol=1e-4)


def test_half_precision_gives_float32(causal) -> None:
    batch = batch_of()
    exact = model_of(causal("llama"))(batch).tensors["log_probability"].detach()
    narrow = model_of(causal("llama"), dtype="bfloat16")
    assert narrow.backbone.lm_head.causal.lm_head.weight.dtype == torch.bfloat16
    under_autocast = model_of(causal("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        second = under_autocast(batch).tensors["log_probability"]
    for found in (narrow(batch).tensors["log_probability"], second):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.detach(), exact, rtol=0.05, atol=0.5)


def test_rewards_are_those_without_the_head(causal) -> None:
    batch = batch_of()
    model = model_of(causal("llama"))
    plain = RewardModel.from_backbone(str(causal("llama")), head_seed=1)
    torch.testing.assert_close(model(batch).rewards, plain(batch).rewards)
    assert plain.tensor_names == {"rewards", "embeddings"}
    mean = model_of(causal("llama"), pooling="mean")
    expected = RewardModel.from_backbone(str(causal("llama")), pooling="mean", head_seed=1)(batch).rewards
    torch.testing.assert_close(mean(batch).rewards, expected)


def test_evaluation_does_without(causal) -> None:
    model = model_of(causal("llama")).eval()
    assert set(model(batch_of()).tensors) == {"rewards", "embeddings"}


def test_a_batch_must_say_where_responses_start(causal) -> None:
    batch = batch_of()
    batch.start = None
    with pytest.raises(ValueError, match=r"needs batch\.start"):
        model_of(causal("llama"))(batch)


@every_family
def test_tied_embeddings_stay_tied_through_a_step_and_a_checkpoint(causal, family: str, tmp_path) -> None:
    model, batch = model_of(causal(family), head=QualityAndLength()), batch_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(batch).tensors["log_probability"].sum().neg().backward()
    optimizer.step()
    state = {f"reward_model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "reward_model": model.describe()}, tmp_path / "a.ckpt")
    again = RewardModel.from_backbone(str(tmp_path / "a.ckpt"), keep_lm_head=True)
    for one in (model, again, again.to(torch.bfloat16).to(torch.float32)):
        lm_head = one.backbone.lm_head.causal.lm_head.weight
        assert (lm_head is one.backbone.model.get_input_embeddings().weight) == (family in TIED)
    again = RewardModel.from_backbone(str(tmp_path / "a.ckpt"), keep_lm_head=True)
    assert again.parameter_count == model.parameter_count
    torch.testing.assert_close(again(batch).tensors, model(batch).tensors, rtol=0, atol=0)
    # for scoring, and for a run that does not ask for it, it is dropped
    for other in (
        RewardModel.from_pretrained(str(tmp_path / "a.ckpt")),
        RewardModel.from_backbone(str(tmp_path / "a.ckpt")),
    ):
        assert other.backbone.lm_head is None
        assert other.describe()["keep_lm_head"] is False
        assert torch.equal(other.eval()(batch).rewards, model.eval()(batch).rewards)
    fresh = RewardModel.from_description(model.describe())
    assert {n: v.shape for n, v in fresh.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}


def test_a_head_of_its_own_beside_a_config_that_says_tied(causal, tmp_path) -> None:
    folder = shutil.copytree(causal("qwen2"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model, batch = model_of(folder), batch_of()
    assert torch.equal(model.backbone.lm_head.causal.lm_head.weight, weights["lm_head.weight"])
    again = RewardModel.from_description(model.describe(), model.state_dict())
    torch.testing.assert_close(again.train()(batch).tensors, model(batch).tensors, rtol=0, atol=0)


def test_real_weights_are_loaded(causal) -> None:
    weights = load_file(causal("llama") / "model.safetensors")
    model = model_of(causal("llama"))
    assert torch.equal(model.backbone.lm_head.causal.lm_head.weight, weights["lm_head.weight"])
    assert torch.equal(model.backbone.model.embed_tokens.weight, weights["model.embed_tokens.weight"])


def test_a_folder_without_weights_starts_from_scratch() -> None:
    torch.manual_seed(1)
    model = RewardModel.from_backbone("world-decoder", keep_lm_head=True)
    torch.manual_seed(1)
    again = RewardModel.from_backbone("world-decoder", keep_lm_head=True)
    weight = again.backbone.lm_head.causal.lm_head.weight
    assert torch.equal(model.backbone.lm_head.causal.lm_head.weight, weight)
    assert weight.std().item() == pytest.approx(0.05, rel=0.05)


def test_a_tied_base_model_has_its_head(causal, tmp_path) -> None:
    folder = shutil.copytree(causal("qwen2"), tmp_path / "base")
    (folder / "model.safetensors").unlink()
    AutoModel.from_pretrained(causal("qwen2")).save_pretrained(folder)
    torch.testing.assert_close(model_of(folder)(batch_of()).tensors, model_of(causal("qwen2"))(batch_of()).tensors)


def test_what_cannot_keep_a_language_model_head_is_refused(causal, saved, tmp_path) -> None:
    base = shutil.copytree(causal("llama"), tmp_path / "base")
    (base / "model.safetensors").unlink()
    AutoModel.from_pretrained(causal("llama")).save_pretrained(base)
    without = RewardModel.from_backbone(str(causal("llama")))
    state = {f"reward_model.{name}": value for name, value in without.state_dict().items()}
    torch.save({"state_dict": state, "reward_model": without.describe()}, tmp_path / "without.ckpt")
    for folder, options, message in [
        (saved("bert"), {}, "bert is no decoder with a language-model head"),
        (saved("llama"), {}, "is a sequence-classification model, which would lose its reward head"),
        (base, {}, r"hold no language-model head \(lm_head\.weight\)"),
        (tmp_path / "without.ckpt", {}, "was saved without its language-model head"),
        (causal("llama"), {"pooling": "classification"}, r"needs model\.pooling auto, last or mean"),
    ]:
        with pytest.raises(UserError, match=rf"^model\.keep_lm_head:? .*{message}") as caught:
            model_of(folder, **options)
        assert "\n" not in str(caught.value)


def test_a_head_that_needs_more_than_states_is_refused() -> None:
    from aplot_lightning.model.backbone import build_backbone
    from aplot_lightning.model.configuration import prepare_config

    config = AutoConfig.for_model("falcon_h1", **{**SIZES, "vocab_size": 20, "num_hidden_layers": 1})
    prepare_config(config, attention=None, dropout=0.0)
    with pytest.raises(UserError, match=r"model\.keep_lm_head: the head of falcon_h1 does not run on states alone"):
        build_backbone(config, "auto", torch.float32, keep_lm_head=True)
