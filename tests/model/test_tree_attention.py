"""Packed rows against plain Transformers: one unpadded forward a conversation, with its own attention."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from aplot_lightning.data.batching import pack_row, pad_rows
from aplot_lightning.model.backbone import build_backbone
from aplot_lightning.model.configuration import prepare_config
from aplot_lightning.model.reward_model import RewardModel
from aplot_lightning.model.tree.attention import NotPackable, PackedRow, tree_attention
from aplot_lightning.model.tree.by_comparison import by_comparison
from aplot_lightning.model.tree.flex import flex_attention_of, flex_works
from aplot_lightning.types import Batch, Pairs, Tree

PACKED = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text", "phi3", "smollm3"]
# (tokens of the root, and for each comparison those of its prefix and of each suffix)
TREES = {
    "ragged pairs": (0, [(5, (3, 17)), (11, (2, 1)), (1, (9, 8))]),
    "single-token answers": (0, [(7, (1, 1)), (3, (1, 1))]),
    "nothing shared": (0, [(0, (4, 6)), (0, (1, 1))]),
    "one response begins the other": (0, [(9, (1, 5)), (12, (6, 1))]),
    "many responses": (0, [(6, (2, 7, 1, 7, 3)), (0, (1, 2, 3))]),
    "a root": (10, [(3, (2, 6)), (0, (1, 1)), (8, (4, 3, 2))]),
    "a long root": (30, [(2, (2, 3)), (0, (5, 1))]),
    "one conversation": (0, [(0, (1,))]),
}
QUERY_AND_KEY = (".q_proj.", ".k_proj.", ".q_norm.", ".k_norm.")


def no_pairs() -> Pairs:
    nothing = torch.zeros(0, dtype=torch.int64)
    return Pairs(nothing, nothing)


def drawn(root: int, comparisons, seed: int = 0) -> list[list[np.ndarray]]:
    """Random tokens of this shape: segments with the root in every prefix."""
    generator = np.random.default_rng(seed)

    def tokens(count: int) -> np.ndarray:
        return generator.integers(2, 60, count)

    shared = tokens(root)
    return [[np.concatenate([shared, tokens(p)]), *(tokens(s) for s in suffixes)] for p, suffixes in comparisons]


def packed(tree: str | tuple) -> Batch:
    return pack_row(drawn(*(TREES[tree] if isinstance(tree, str) else tree)), no_pairs(), least_root=1)


def rows_of(tree: str | tuple) -> list[np.ndarray]:
    segments = drawn(*(TREES[tree] if isinstance(tree, str) else tree))
    return [np.concatenate([prefix, suffix]) for prefix, *suffixes in segments for suffix in suffixes]


class Plain:
    """Transformers' own sequence classification, one conversation a forward."""

    def __init__(self, folder) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.model.config.get_text_config().pad_token_id = None  # else a last token that equals it is passed over

    def rewards(self, rows) -> torch.Tensor:
        return torch.cat([self.model(input_ids=torch.from_numpy(row)[None]).logits[0] for row in rows])


@pytest.fixture(scope="session")
def models(saved):
    """models(family) -> our model, which packs, and the plain one, made once."""
    made: dict[str, tuple[RewardModel, Plain]] = {}

    def get(family: str) -> tuple[RewardModel, Plain]:
        if family not in made:
            model = RewardModel.from_backbone(str(saved(family)))
            assert model.packing_refusal is None
            made[family] = model, Plain(saved(family))
        return made[family]

    return get


def assert_exact(model: RewardModel, plain: Plain, tree: str | tuple, rewards: torch.Tensor | None = None) -> None:
    """Rewards to 1e-5 and the gradient of every weight to 1e-4 of its size."""
    batch, rows = packed(tree), rows_of(tree)
    weights = torch.linspace(-1, 1.5, len(rows))
    model.zero_grad()
    plain.model.zero_grad()
    ours, expected = model(batch).rewards, plain.rewards(rows)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: p.grad for name, p in plain.model.named_parameters() if p.grad is not None}
    lone = all(len(row) == 1 for row in rows)
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, parameter in [
        *model.backbone.model.named_parameters(prefix="model"),
        ("score.weight", model.head.weight),
    ]:
        gradient = gradients[name]
        if lone and any(part in name for part in QUERY_AND_KEY):  # one key has all the weight: 0 but for rounding
            assert parameter.grad.norm() <= 1e-6 * largest, name
            continue
        difference = (parameter.grad - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() + 1e-6, f"{name}: {difference} of {gradient.norm()}"


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("family", PACKED)
def test_rewards_and_gradients_are_those_of_separate_forwards(models, family, tree):
    model, plain = models(family)
    assert model.backbone.packing.last_layer is not None
    assert_exact(model, plain, tree)


SUFFIXES = st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple)
COMPARISONS = st.lists(st.tuples(st.integers(0, 14), SUFFIXES), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(root=st.integers(0, 20), comparisons=COMPARISONS, family=st.sampled_from(["llama", "mistral", "gemma3_text"]))
def test_any_tree_is_exact(models, root, comparisons, family):
    assert_exact(*models(family), (root, comparisons))


def test_a_layer_that_takes_its_arguments_otherwise_is_run_in_full(saved):
    model = RewardModel.from_backbone(str(saved("gpt2")))
    assert model.packs
    assert model.backbone.packing.last_layer is None
    plain = Plain(saved("gpt2"))
    torch.testing.assert_close(model(packed("a root")).rewards, plain.rewards(rows_of("a root")), rtol=1e-5, atol=1e-5)


def test_padded_rows_are_still_taken(models):
    for family in ("llama", "mistral", "gemma3_text"):
        model, plain = models(family)
        rows = rows_of("ragged pairs")
        padded = Batch(*pad_rows(rows, 0), no_pairs())
        torch.testing.assert_close(model(padded).rewards, plain.rewards(rows), rtol=1e-5, atol=1e-5)


def test_a_batch_of_embeddings_runs_the_head_alone(models):
    model, _ = models("llama")
    scores = model(packed("a root"))
    cached = Batch.cached(scores.embeddings.detach(), no_pairs())
    assert cached.responses == len(scores)
    torch.testing.assert_close(model(cached).rewards, scores.rewards, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_gradient_checkpointing_changes_nothing(saved, family, reentrant):
    model = RewardModel.from_backbone(str(saved(family)))
    inner = model.backbone.model
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    if reentrant:
        model.backbone.model.enable_input_require_grads()
    assert model.packs
    calls = []
    model.backbone.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_exact(model, Plain(saved(family)), "a root")
    assert len(calls) == 2  # once more in the backward pass
    assert all(layer.gradient_checkpointing for layer in model.backbone.model.layers)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text"])
def test_the_last_layer_sees_scored_tokens_alone(models, family):
    model, _ = models(family)
    seen = []
    layers = model.backbone.model.layers
    hooks = [layer.mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1])) for layer in layers]
    batch = packed("many responses")
    model(batch)
    for hook in hooks:
        hook.remove()
    assert seen == [batch.input_ids.shape[1]] * (len(layers) - 1) + [batch.responses]


def test_dropout_is_honoured_and_repeats(saved):
    model = RewardModel.from_backbone(str(saved("llama")), dropout=0.3)
    assert model.packs

    def rewards(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(packed("a root")).rewards.detach()

    torch.testing.assert_close(rewards(1), rewards(1), rtol=0, atol=0)
    assert (rewards(1) - rewards(2)).abs().min() > 1e-4
    with torch.no_grad():
        torch.testing.assert_close(rewards(1), rewards(1).detach(), rtol=0, atol=0)
    torch.testing.assert_close(
        model.eval()(packed("a root")).rewards, Plain(saved("llama")).rewards(rows_of("a root")), rtol=1e-5, atol=1e-5
    )


def test_dropped_attention_has_the_mean_of_undropped():
    batch = packed("a root")
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, batch.input_ids.shape[1], 8) for heads in (4, 2, 2))
    query, key, value = (tensor.expand(2000, -1, -1, -1) for tensor in (query, key, value))

    def attend(dropout: float) -> torch.Tensor:
        options = {"dropout_p": dropout, "scale": None}
        return by_comparison(batch.tree, lambda _, make: make(), query, key, value, 6, options)

    dropped, whole = attend(0.2), attend(0.0)
    torch.testing.assert_close(dropped.mean(0), whole[0], rtol=0, atol=0.1)
    assert (dropped - whole).abs().max() > 0.5


def test_finding_out_disturbs_nothing(saved):
    model = RewardModel.from_backbone(str(saved("llama")), dropout=0.2)
    model.backbone.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    names = list(model.state_dict())
    state = torch.get_rng_state()
    assert model.packs
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert names == list(model.state_dict())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "aplot" not in str(model.describe())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_precisions_pack(saved, models, dtype):
    model = RewardModel.from_backbone(str(saved("llama")), dtype=dtype)
    assert model.packs
    assert model.backbone.packing.last_layer is not None
    rewards = model(packed("a root")).rewards
    expected = models("llama")[1].rewards(rows_of("a root"))
    torch.testing.assert_close(rewards.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_autocast_packs(models):
    model, plain = models("llama")
    with torch.autocast("cpu", torch.bfloat16):
        rewards = model(packed("a root")).rewards
    expected = plain.rewards(rows_of("a root"))
    torch.testing.assert_close(rewards, expected, rtol=0, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("gemma2", {}, "gemma2 does not take packed rows: its attention has a soft cap"),
        ("llama", {"attention": "eager"}, "its attention is eager, not sdpa"),
        ("llama", {"pooling": "mean"}, "model.pooling mean"),
        ("llama", {"keep_lm_head": True}, "model.keep_lm_head"),
        ("bert", {}, "bert is an encoder"),
        ("bert", {"pooling": "last"}, "bert is an encoder"),
    ],
)
def test_what_cannot_be_packed_says_why(saved, family, options, reason):
    labels = None if options.get("keep_lm_head") else 1
    model = RewardModel.from_backbone(str(saved(family, labels)), **options)
    assert reason in model.packing_refusal
    assert not model.packs
    with pytest.raises(ValueError, match="a packed batch, but"):
        model(packed("a root"))


class Peeking(nn.Module):
    """A module that mixes neighbouring tokens, as a convolution would: a packed row would mix conversations."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states + states.roll(1, dims=1))


def test_an_architecture_that_gives_other_states_is_left_as_it_was(saved):
    model = RewardModel.from_backbone(str(saved("llama")))
    layer = model.backbone.model.layers[0]
    layer.mlp = Peeking(layer.mlp)
    assert "other states" in model.packing_refusal
    assert model.backbone.config._attn_implementation == "sdpa"
    assert "forward" not in vars(model.backbone.model.layers[-1])


def test_windows_that_attention_is_not_told_of_are_not_packed(saved):
    model = RewardModel.from_backbone(str(saved("llama")))
    model.backbone.config.sliding_window = 6  # as if only the mask had it
    assert "do not say how wide their windows are" in model.packing_refusal


def test_attention_outside_of_the_interface_is_not_packed():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
    config = AutoConfig.for_model("falcon", num_labels=1, bos_token_id=1, eos_token_id=1, **sizes)
    prepare_config(config, attention=None, dropout=0.0)
    backbone, _ = build_backbone(config, "auto", torch.float32)
    assert "a way of its own" in backbone.packing.refusal
    assert backbone.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("argument", "value"), [("softcap", 50.0), ("s_aux", torch.zeros(2)), ("is_causal", False)])
def test_attention_that_asks_for_more_is_refused(argument, value):
    batch = packed("a root")
    tensors = [torch.randn(1, 2, batch.input_ids.shape[1], 8) for _ in range(3)]
    arguments = {"packed": PackedRow.of(batch), argument: value}
    with pytest.raises(NotPackable):
        tree_attention(nn.Identity(), *tensors, None, **arguments)
    tree_attention(nn.Identity(), *tensors, None, **{**arguments, argument: None})


def test_weights_that_are_not_there_are_not_tried(saved):
    model = RewardModel.from_backbone(str(saved("llama"))).to("meta")
    assert "no weights yet" in model.packing_refusal


class Adapter(nn.Module):
    """A low-rank adapter around a projection, as PEFT has it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Linear(inner.in_features, 2, bias=False)
        self.up = nn.Linear(2, inner.out_features, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states) + self.up(self.down(states))


@pytest.mark.parametrize("before", [True, False], ids=["wrapped before", "wrapped after"])
def test_adapters_stay_in_force(saved, before):
    model = RewardModel.from_backbone(str(saved("llama")))
    if not before:
        assert model.packs
    torch.manual_seed(1)
    for layer in model.backbone.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Adapter(getattr(layer.self_attn, name)))
    assert model.packs
    rows = rows_of("a root")
    padded = model(Batch(*pad_rows(rows, 0), no_pairs())).rewards
    ours = model(packed("a root")).rewards
    torch.testing.assert_close(ours, padded, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    adapters = [p for name, p in model.named_parameters() if ".down." in name or ".up." in name]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in adapters)


def test_copies_and_pickles_run_their_own_weights(saved):
    model = RewardModel.from_backbone(str(saved("llama")))
    assert model.packs
    expected = model(packed("a root")).rewards
    stream = io.BytesIO()
    pickle.dump(model.backbone, stream)
    stream.seek(0)
    for backbone in (copy.deepcopy(model).backbone, pickle.load(stream)):
        other = copy.deepcopy(model)
        other.backbone = backbone
        with torch.no_grad():
            for parameter in model.backbone.model.layers[-1].parameters():
                parameter.mul_(1.0)
            for parameter in backbone.model.layers[-1].parameters():
                parameter.zero_()
        changed = other(packed("a root")).rewards
        torch.testing.assert_close(model(packed("a root")).rewards, expected, rtol=0, atol=0)
        assert (changed - expected).abs().max() > 1e-3


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a device: values or shapes that the host must know."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_a_packed_step_never_waits_for_the_device(models, family):
    model, _ = models(family)
    batch = packed("a root")
    with NoWaiting():
        model(batch).rewards.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it
def test_compiled_layers_give_the_same(saved):
    model = RewardModel.from_backbone(str(saved("mistral")))
    assert model.packs
    for layer in model.backbone.model.layers:
        layer.compile(dynamic=True, backend="aot_eager")
    for tree in ("a root", "many responses"):
        assert_exact(model, Plain(saved("mistral")), tree)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("tree", TREES)
def test_flex_attention_is_the_same(tree, window):
    """Uncompiled on the CPU, forward: what a GPU compiles."""
    batch = packed(tree)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, batch.input_ids.shape[1], 16) for heads in (4, 2, 2))
    arguments = (query, key, value, window, {"dropout_p": 0.0, "scale": 0.3})
    expected = by_comparison(batch.tree, lambda _, make: make(), *arguments)
    ours = flex_attention_of(batch.tree, batch.position_ids, lambda _, make: make(), *arguments)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile:UserWarning")
def test_a_device_that_cannot_train_with_flex_attention_goes_without(caplog):
    tensors = [torch.randn(1, heads, 5, 16) for heads in (4, 2)]
    with caplog.at_level(logging.INFO):
        assert not flex_works(*tensors)  # the CPU has no backward of it
    assert "attention goes comparison by comparison" in caplog.text


def test_sharded_blocks_give_the_same(tmp_path, saved):
    """FSDP2 around every layer, in a process group of one, which is a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(saved("llama")), str(tmp_path / "store")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]


def _sharded(folder: str, store: str) -> None:
    from torch.distributed.fsdp import fully_shard

    model = RewardModel.from_backbone(folder)
    assert model.packs
    batch = packed("a root")
    expected = model(batch).rewards
    expected.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    for layer in model.backbone.model.layers:
        fully_shard(layer)
    fully_shard(model)
    rewards = model(batch).rewards
    torch.testing.assert_close(rewards, expected, rtol=1e-6, atol=1e-6)
    rewards.sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], rtol=1e-5, atol=1e-6)
    torch.distributed.destroy_process_group()


def test_a_tree_knows_its_row():
    assert Tree.row_order((2, 7, 1, 7)) == [1, 0, 2, 3]
    assert Tree(3, ((2, (1, 4)), (0, (5,)))).lengths == (6, 9, 8)


if __name__ == "__main__":
    _sharded(*sys.argv[1:])
