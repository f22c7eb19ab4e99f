"""Adapters against PEFT's own model around plain Transformers, and what becomes of them in checkpoints and exports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from aplot_lightning.commands import average
from aplot_lightning.data.batching import pack_row, pad_rows
from aplot_lightning.data.comparisons import conversation_of
from aplot_lightning.errors import UserError
from aplot_lightning.model.export import export_model
from aplot_lightning.model.lora import LoRA, check_shape, widen_adapters
from aplot_lightning.model.reward_model import RewardModel
from aplot_lightning.objectives import Objective, TransportMargin
from aplot_lightning.training.gradient_cache import whole_batch_step
from aplot_lightning.types import Batch, Pairs, Scores

LLAMA = r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
BERT = r".*encoder.*\.(query|key|value|dense)"
TARGETS = {  # what PEFT is told: the linear layers of the blocks
    "llama": LLAMA,
    "mistral": LLAMA,
    "phi3": r".*\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
    "gpt2": r".*\.(c_attn|c_proj|c_fc)",
    "bert": BERT,
    "roberta": BERT,
    "deberta-v2": r".*encoder.*\.((pos_)?(query|key)_proj|value_proj|dense)",
    "distilbert": r".*transformer.*\.(q_lin|k_lin|v_lin|out_lin|lin1|lin2)",
}
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
PATHS = {"roberta": "classifier.dense", "deberta-v2": "pooler.dense", "distilbert": "pre_classifier"}
NOTHING = Pairs(*[torch.zeros(0, dtype=torch.int64)] * 2)


def adapted(folder: Path | str, lora: LoRA | None = None, *, moved: bool = True, **options: Any) -> RewardModel:
    """A model with adapters that are as far from their start as training would take them."""
    torch.manual_seed(4)
    model = RewardModel.from_backbone(str(folder), **options)
    model.add_lora(lora or LoRA(rank=3))
    if moved:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch_of(model: RewardModel, items: list[dict]) -> Batch:
    rows = model.encode([conversation_of(item["prompt"], item["response"]) for item in items])
    return Batch(*pad_rows(rows, 0), NOTHING)


def write_checkpoint(model: RewardModel, path: Path) -> Path:
    state = {f"reward_model.{name}": value for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "reward_model": model.describe(), "global_step": 1}, path)
    return path


def adapters_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """By the layer's path and the part, whatever stands before."""
    return {
        name.partition("layer")[2] or name.partition(".h.")[2]: parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }


# What is trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TARGETS)
def test_rewards_at_the_start_are_those_of_the_backbone(saved, items, family, kind):
    model = RewardModel.from_pretrained(str(saved(family)))
    expected = model.score(items)
    model.add_lora(LoRA(rank=3, **KINDS[kind]))
    np.testing.assert_allclose(model.score(items), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", TARGETS)
def test_only_adapters_and_the_head_get_gradients(saved, items, family):
    model = adapted(saved(family))
    model(batch_of(model, items)).rewards.sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    rest = {name for name in moved if "lora_" not in name and not name.startswith("head.")}
    path = PATHS.get(family)  # a part of the head that lies in the backbone, and that starts fresh where it is missing
    assert rest == ({f"backbone.model.{path}.{part}" for part in ("weight", "bias")} if path else set())


# PEFT itself as the oracle


class Oracle:
    """PEFT's model around the plain one, with the same adapters; one conversation a forward."""

    def __init__(self, folder: Path, family: str, lora: LoRA, ours: RewardModel) -> None:
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
        plain.config.pad_token_id = None  # else a last token that equals it is passed over
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=TARGETS[family],
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            fan_in_fan_out=family == "gpt2",
        )
        self.model = get_peft_model(plain, config).eval()
        self.adapters = adapters_of(self.model)
        own = adapters_of(ours)
        assert own.keys() == self.adapters.keys()
        with torch.no_grad():
            for name, parameter in self.adapters.items():
                parameter.copy_(own[name])

    def rewards(self, rows: list[np.ndarray]) -> Tensor:
        return torch.cat([self.model(input_ids=torch.from_numpy(row)[None].long()).logits[0] for row in rows])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of PEFT, around its own model
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TARGETS)
def test_rewards_gradients_and_merged_weights_are_those_of_peft(saved, items, family, kind):
    lora = LoRA(rank=3, alpha=5.0, **KINDS[kind])
    model = adapted(saved(family), lora).eval()
    oracle = Oracle(saved(family), family, lora, model)
    rows = model.encode([conversation_of(item["prompt"], item["response"]) for item in items])
    expected, found = oracle.rewards(rows), model(batch_of(model, items)).rewards
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    weights = torch.linspace(-1, 1.5, len(rows))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for name, parameter in adapters_of(model).items():
        gradient = oracle.adapters[name].grad
        assert (parameter.grad - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name

    plain = RewardModel.from_description(model.describe(), model.state_dict()).eval()
    assert plain.lora is None
    whole = dict(oracle.model.merge_and_unload().named_parameters())
    for name, parameter in plain.backbone.model.named_parameters():
        (expected,) = (whole[key] for key in whole if key == name or key.endswith(f".{name}"))
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(plain.score(items), model.score(items), rtol=1e-5, atol=1e-5)


# Packed rows and micro-batches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "gpt2"])
def test_packed_rows_are_padded_rows(saved, family, kind):
    model = adapted(saved(family), LoRA(rank=3, **KINDS[kind]))
    assert model.packing_refusal is None
    bare = RewardModel.from_backbone(str(saved(family)))
    assert bare.packs
    assert model.backbone.packing.last_layer == bare.backbone.packing.last_layer  # adapters do not stand in its way
    ids = (np.arange(60) * 11 + 5) % 60 + 2
    comparisons = [[ids[:9], ids[9:11], ids[11:18]], [ids[:4], ids[20:21], ids[21:25], ids[25:27]]]
    rows = [np.concatenate([prefix, suffix]) for prefix, *suffixes in comparisons for suffix in suffixes]
    weights = torch.linspace(-1, 1.5, len(rows))
    results = []
    for batch in (pack_row(comparisons, NOTHING, least_root=1), Batch(*pad_rows(rows, 0), NOTHING)):
        model.zero_grad()
        rewards = model(batch).rewards
        (rewards * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((rewards.detach(), gradients))
    (packed, ours), (padded, expected) = results
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_two_passes_repeat_the_dropout_of_adapters(saved, layout):
    """Oracle: one graph over all micro-batches, from the same random state."""
    model = adapted(saved("llama"), LoRA(rank=3, dropout=0.4))
    assert model.packs
    ids = (np.arange(200) * 11 + 5) % 60 + 2
    parts = []
    for start in (0, 40, 80):
        comparisons = [[ids[start + at : start + at + 5], ids[at : at + 3], ids[at + 7 : at + 11]] for at in (0, 20)]
        pairs = Pairs(torch.tensor([0, 2]), torch.tensor([1, 3]), {"index": torch.tensor([start, start + 1])})
        rows = [np.concatenate([prefix, suffix]) for prefix, *suffixes in comparisons for suffix in suffixes]
        packed = layout == "packed"
        parts.append(pack_row(comparisons, pairs, least_root=1) if packed else Batch(*pad_rows(rows, 0), pairs))
    objective = Objective(margin=TransportMargin())
    torch.manual_seed(3)
    step = whole_batch_step(model, objective, parts)
    step.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(3)
    scores = [model(part) for part in parts]
    whole = Pairs.concatenate([part.pairs for part in parts], [len(score) for score in scores])
    loss = objective(Scores.concatenate(scores), whole).loss
    loss.backward()
    torch.testing.assert_close(step.loss.detach(), loss.detach(), rtol=0, atol=1e-6)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)
    torch.manual_seed(4)
    assert (model(parts[0]).rewards - scores[0].rewards).abs().max() > 1e-3  # dropout there is
    assert model.eval()(parts[0]).rewards.equal(model(parts[0]).rewards)


# Checkpoints


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
def test_a_checkpoint_is_read_as_the_plain_merged_model(saved, items, tmp_path, family, monkeypatch):
    model = adapted(saved(family), LoRA(rank=3, dropout=0.1), max_length=50)
    expected = model.score(items)
    write_checkpoint(model, tmp_path / "run/checkpoints/best.ckpt")
    monkeypatch.setitem(sys.modules, "peft", None)  # who scores needs none
    again = RewardModel.from_pretrained(str(tmp_path / "run"))
    np.testing.assert_allclose(again.score(items), expected, rtol=1e-5, atol=1e-5)
    plain = RewardModel.from_pretrained(str(saved(family)))
    assert again.state_dict().keys() == plain.state_dict().keys()
    assert again.describe() == {key: value for key, value in model.describe().items() if key != "lora"}
    assert again.max_length == 50


def test_a_run_starts_from_the_merged_weights_of_another(saved, items, tmp_path):
    model = adapted(saved("llama"))
    path = write_checkpoint(model, tmp_path / "a.ckpt")
    further = RewardModel.from_backbone(str(path))
    assert all(parameter.requires_grad for parameter in further.parameters())
    further = adapted(path, LoRA(rank=5, dora=True), moved=False)
    np.testing.assert_allclose(further.score(items), model.score(items), rtol=1e-5, atol=1e-5)


def test_a_description_alone_builds_a_model_that_takes_the_weights(saved, items, tmp_path):
    model = adapted(saved("gpt2"), LoRA(rank=3, dropout=0.1, targets=["c_attn", "mlp.c_proj"]))
    torch.save(model.describe(), tmp_path / "description.pt")
    description = torch.load(tmp_path / "description.pt", weights_only=True)
    again = RewardModel.from_description(description)
    again.load_state_dict(model.state_dict())
    assert again.describe() == model.describe()
    assert again.score(items) == model.score(items)


def test_a_language_model_head_stays_as_it_is(saved, items, tmp_path):
    model = adapted("world-decoder", keep_lm_head=True)
    assert not any(parameter.requires_grad for parameter in model.backbone.lm_head.parameters())
    path = write_checkpoint(model, tmp_path / "a.ckpt")
    np.testing.assert_allclose(RewardModel.from_pretrained(str(path)).score(items), model.score(items), atol=1e-5)
    kept = RewardModel.from_backbone(str(path), keep_lm_head=True)
    torch.testing.assert_close(kept.backbone.lm_head.state_dict(), model.backbone.lm_head.state_dict())


@pytest.mark.parametrize(("dtype", "wide"), [("bfloat16", torch.float32), ("float64", torch.float64)])
def test_adapters_are_wide_and_are_merged_wide(saved, items, dtype, wide):
    model = adapted(saved("llama"), dtype=dtype)
    assert {parameter.dtype for parameter in adapters_of(model).values()} == {wide}
    model(batch_of(model, items)).rewards.sum().backward()
    assert {parameter.grad.dtype for parameter in adapters_of(model).values()} == {wide}
    merged = RewardModel.from_description(model.describe(), model.state_dict(), dtype="float64").eval()
    layer, base = (m.backbone.model.layers[1].mlp.up_proj for m in (merged, model))
    down, up = base.lora_A["default"].weight, base.lora_B["default"].weight
    expected = base.base_layer.weight.to(wide) + 32 / 3 * (up @ down)
    torch.testing.assert_close(layer.weight.to(wide), expected, rtol=1e-6, atol=1e-6)


def test_conversion_leaves_adapters_wide(saved):
    model = adapted(saved("llama"), LoRA(rank=2, dora=True)).backbone
    model.to(torch.bfloat16)
    widen_adapters(model)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}


@pytest.mark.parametrize(
    "damage",
    [
        lambda shape, state: shape.pop("transposed"),
        lambda shape, state: shape.update(rank=0),
        lambda shape, state: shape.update(code="os.system"),
        lambda shape, state: state.pop(next(name for name in state if "lora_B" in name)),
        lambda shape, state: state.update({next(name for name in state if "lora_A" in name): torch.ones(2, 2)}),
    ],
)
def test_damaged_adapters_are_named(saved, tmp_path, damage):
    model = adapted(saved("llama"))
    description, state = model.describe(), dict(model.state_dict())
    damage(description["lora"], state)
    content = {f"reward_model.{name}": value for name, value in state.items()}
    torch.save({"state_dict": content, "reward_model": description}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: the checkpoint's adapters are damaged") as caught:
        RewardModel.from_pretrained(str(tmp_path / "a.ckpt"))
    assert "\n" not in str(caught.value)


# Average and export


def test_an_average_is_of_merged_weights(saved, tmp_path):
    """The mean of B and the mean of A would make another product."""
    plain = RewardModel.from_backbone(str(saved("llama")))
    models = [adapted(saved("llama"), LoRA(rank=rank)) for rank in (2, 3)]
    paths = [write_checkpoint(model, tmp_path / f"{place}.ckpt") for place, model in enumerate([*models, plain])]
    average.main([str(path) for path in paths], str(tmp_path / "mean.ckpt"))
    mean = RewardModel.from_pretrained(str(tmp_path / "mean.ckpt"))
    states = [RewardModel.from_pretrained(str(path)).state_dict() for path in paths]
    for name, tensor in mean.state_dict().items():
        expected = torch.stack([state[name].double() for state in states]).mean(0).float()
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
def test_an_export_is_a_plain_model_that_transformers_alone_scores_alike(saved, items, tmp_path, family, kind):
    items = [item for item in items if "<eos>" not in str(item)]  # which is text to us, and a token to others
    model = adapted(saved(family), LoRA(rank=3, **KINDS[kind]))
    expected = model.score(items)
    path = write_checkpoint(model, tmp_path / "a.ckpt")
    (tmp_path / "plain").mkdir()
    export_model(RewardModel.from_pretrained(str(path)), tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("adapter*"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    texts = [
        tokenizer.apply_chat_template(list(conversation_of(item["prompt"], item["response"])), tokenize=False)
        for item in items
    ]
    with torch.inference_mode():
        found = plain(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


# Mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, r"model\.lora\.rank is 0"),
        ({"alpha": 0.0}, r"model\.lora\.alpha is 0\.0"),
        ({"alpha": float("nan")}, r"model\.lora\.alpha is nan"),
        ({"dropout": 1.0}, r"model\.lora\.dropout is 1\.0"),
        ({"targets": []}, r"model\.lora\.targets is empty"),
        ({"targets": ["q_proj", "proj"]}, r"is called 'proj'; choose from down_proj, gate_proj, k_proj"),
        ({"targets": ["embed_tokens"]}, r"is called 'embed_tokens'; choose from"),
    ],
)
def test_mistakes_are_one_line(saved, options, said):
    model = RewardModel.from_backbone(str(saved("llama")))
    with pytest.raises(UserError, match=said) as caught:
        model.add_lora(LoRA(**options))
    assert "\n" not in str(caught.value)
    assert model.lora is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_targets_are_ends_of_names(saved):
    model = adapted(saved("bert"), LoRA(rank=2, targets=["query", "attention.output.dense"]))
    layers = {
        name.partition("layer.")[2].partition(".lora_")[0] for name in dict(model.named_parameters()) if "lora_" in name
    }
    expected = {f"{n}.{layer}" for n in (0, 1) for layer in ("attention.self.query", "attention.output.dense")}
    assert layers == expected


def test_who_has_no_peft_is_told_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = RewardModel.from_backbone(str(saved("llama")))
    with pytest.raises(UserError, match=r'model\.lora needs PEFT .*pip install "aplot-lightning\[lora\]"') as caught:
        model.add_lora(LoRA())
    assert "\n" not in str(caught.value)


def test_a_run_goes_on_with_the_same_adapters_only(saved):
    shape = adapted(saved("llama")).lora
    check_shape(shape, {**shape, "dropout": 0.3})
    check_shape(None, None)
    for own, other, said in [
        (shape, {**shape, "rank": 8}, "the checkpoint has rank 8, .*, the config rank 3, "),
        (shape, None, "the checkpoint has no adapters, the config rank 3"),
        (None, shape, "the checkpoint has rank 3, .*, the config no adapters"),
        (shape, {**shape, "alpha": 1.0}, r"alpha 1\.0"),
    ]:
        with pytest.raises(UserError, match=said):
            check_shape(own, other)
