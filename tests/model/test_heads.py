"""Oracles: heads written out with numpy or plain torch in the test, torch.distributions, autograd.gradcheck."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aplot_lightning.errors import UserError
from aplot_lightning.model.heads import (
    HEADS,
    MLP,
    Bottleneck,
    Ensemble,
    Head,
    Linear,
    QualityAndLength,
    WithConfidence,
    WithVariance,
    build_head,
    make_head,
)

ALL = {
    "linear": Linear(),
    "mlp": MLP(),
    "mlp_of_two": MLP(hidden_size=3, layers=2, activation="tanh"),
    "with_variance": WithVariance(floor=0.05),
    "with_confidence": WithConfidence(),
    "quality_and_length": QualityAndLength(),
    "ensemble": Ensemble(members=4),
    "bottleneck": Bottleneck(dimension=3),
}
SHAPES = {"member_rewards": (4,)}
every_head = pytest.mark.parametrize("name", ALL)


def make(name: str, size: int = 5, bias: bool = True, deviation: float = 0.5, seed: int = 3) -> Head:
    head = make_head(ALL[name], size, bias, None, deviation=deviation, seed=seed)
    with torch.no_grad():
        for parameter in head.parameters():  # biases too, which start at 0
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return head


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def affine(layer: nn.Module, inputs: np.ndarray) -> np.ndarray:
    return inputs @ numbers(layer.weight).T + (0 if layer.bias is None else numbers(layer.bias))


@every_head
def test_names_and_shapes_are_those_that_were_announced(name: str) -> None:
    head = make(name)
    for mode in (True, False):
        tensors = head.train(mode)(torch.randn(6, 5))
        assert set(tensors) == head.tensor_names
        assert {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()} == {
            key: ((6, *SHAPES.get(key, ())), torch.float32) for key in tensors
        }
    assert head.linear == (name == "linear")


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_dot_product(bias: bool) -> None:
    head, embeddings = make("linear", bias=bias), torch.randn(3, 5)
    assert (head.bias is not None) == bias
    np.testing.assert_allclose(numbers(head(embeddings)["rewards"]), affine(head, numbers(embeddings))[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("tanh", np.tanh),
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("gelu", lambda x: x * torch.distributions.Normal(0.0, 1.0).cdf(torch.from_numpy(x)).numpy()),
    ],
)
@pytest.mark.parametrize(("hidden_size", "layers"), [(None, 1), (7, 1), (7, 3)])
def test_mlp_against_numpy(activation, function, hidden_size, layers) -> None:
    options = MLP(hidden_size=hidden_size, layers=layers, activation=activation)
    head = make_head(options, 5, True, None, deviation=0.5, seed=1)
    states = embeddings = np.random.default_rng(0).normal(size=(4, 5))
    for layer in head.hidden:
        assert layer.out_features == (hidden_size or 5)
        states = function(affine(layer, states))
    assert len(head.hidden) == layers
    rewards = head(torch.from_numpy(embeddings))["rewards"]
    np.testing.assert_allclose(numbers(rewards), affine(head.reward, states)[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "second"), [("with_variance", "variance"), ("with_confidence", "confidence")])
def test_the_second_output_is_positive(name: str, second: str) -> None:
    head, embeddings = make(name, bias=False), torch.randn(50, 5)
    tensors = head(embeddings)
    expected = np.log1p(np.exp(affine(head.positive, numbers(embeddings))))[:, 0] + head.floor
    np.testing.assert_allclose(numbers(tensors[second]), expected, rtol=1e-5)
    np.testing.assert_allclose(numbers(tensors["rewards"]), affine(head.reward, numbers(embeddings))[:, 0], rtol=1e-4)
    assert head.reward.bias is None
    assert head.positive.bias is not None
    far = head(torch.tensor([[1e4] * 5, [-1e4] * 5], requires_grad=True))
    assert torch.isfinite(far[second]).all()
    assert (far[second] >= head.floor).all()
    far[second].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.positive.parameters())


def test_quality_and_length_against_numpy() -> None:
    head, embeddings = make("quality_and_length"), torch.randn(6, 5)
    quality, length = affine(head.rewards, numbers(embeddings)).T
    first, second = numbers(head.rewards.weight)
    overlap = abs(first @ second) / np.sqrt((first @ first) * (second @ second))
    for training in (True, False):
        tensors = head.train(training)(embeddings)
        np.testing.assert_allclose(numbers(tensors["quality_rewards"]), quality, rtol=1e-5)
        np.testing.assert_allclose(numbers(tensors["length_rewards"]), length, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(numbers(tensors["head_overlap"]), [overlap] * 6, rtol=1e-5)
        np.testing.assert_allclose(numbers(tensors["rewards"]), quality + training * length, rtol=1e-5, atol=1e-6)


def test_the_overlap_of_equal_opposite_and_orthogonal_heads() -> None:
    head = make("quality_and_length", size=2)
    for other, expected in (([2.0, 0.0], 1.0), ([-5.0, 0.0], 1.0), ([0.0, 3.0], 0.0)):
        with torch.no_grad():
            head.rewards.weight.copy_(torch.tensor([[0.5, 0.0], other]))
        assert head(torch.zeros(1, 2))["head_overlap"].item() == pytest.approx(expected)
    with torch.no_grad():
        head.rewards.weight.zero_()
    head(torch.zeros(1, 2))["head_overlap"].sum().backward()
    assert torch.isfinite(head.rewards.weight.grad).all()


def test_ensemble_is_the_mean_of_its_members() -> None:
    head, embeddings = make("ensemble"), torch.randn(6, 5)
    members = affine(head.rewards, numbers(embeddings))
    np.testing.assert_allclose(numbers(head(embeddings)["member_rewards"]), members, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(numbers(head(embeddings)["rewards"]), members.mean(1), rtol=1e-4, atol=1e-6)


def test_members_differ_and_do_not_depend_on_their_number() -> None:
    few, many = (make_head(Ensemble(count), 8, True, None, deviation=0.5, seed=5) for count in (2, 5))
    assert torch.equal(few.rewards.weight, many.rewards.weight[:2])
    assert len(torch.unique(many.rewards.weight, dim=0)) == 5


@given(scale=st.floats(0.01, 5.0), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_kl_against_torch_distributions(scale: float, seed: int) -> None:
    head = make("bottleneck", deviation=scale, seed=seed)
    embeddings = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    mean, log_variance = torch.from_numpy(affine(head.code, numbers(embeddings))).chunk(2, -1)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance.clamp(-20, 20)).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(head(embeddings)["kl"].double(), expected, rtol=1e-3, atol=1e-4)
    assert (head(embeddings)["kl"] >= 0).all()


def test_bottleneck_scores_the_mean_and_trains_on_samples() -> None:
    head = make("bottleneck", size=4, deviation=0.3)
    embeddings = torch.randn(1, 4)
    mean, log_variance = affine(head.code, numbers(embeddings)).reshape(2, -1)
    expected = affine(head.reward, mean[None])[0, 0]
    state = torch.get_rng_state()
    assert head.eval()(embeddings)["rewards"].item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(torch.get_rng_state(), state)
    head.train()
    rewards = numbers(head(embeddings.expand(40_000, 4))["rewards"])
    spread = np.sqrt((np.square(numbers(head.reward.weight)[0]) * np.exp(log_variance)).sum())
    assert rewards.mean() == pytest.approx(expected, abs=5 * spread / 200)
    assert rewards.std() == pytest.approx(spread, rel=0.03)
    torch.set_rng_state(state)
    again = numbers(head(embeddings.expand(40_000, 4))["rewards"])
    np.testing.assert_array_equal(again, rewards)  # torch's global stream, so that two passes can repeat it


def test_bottleneck_stays_finite_far_out() -> None:
    head = make("bottleneck")
    tensors = head(torch.full((2, 5), 1e4, requires_grad=True))
    (tensors["kl"].sum() + tensors["rewards"].sum()).backward()
    assert all(torch.isfinite(value).all() for value in tensors.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


@pytest.mark.parametrize("training", [True, False])
@every_head
def test_gradients_in_float64(name: str, training: bool) -> None:
    head = make(name, size=3).double().train(training)
    names = sorted(head.tensor_names)
    parameters = dict(head.named_parameters())

    def outputs(embeddings: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)  # the same noise in every call
        tensors = torch.func.functional_call(head, dict(zip(parameters, values, strict=True)), (embeddings,))
        return tuple(tensors[key] for key in names)

    embeddings = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert outputs(embeddings, *parameters.values())[0].dtype == torch.float64
    assert torch.autograd.gradcheck(outputs, (embeddings, *parameters.values()))


@every_head
def test_rows_do_not_see_each_other(name: str) -> None:
    head, embeddings = make(name).eval(), torch.randn(7, 5)
    order = torch.randperm(7)
    whole, shuffled = head(embeddings), head(embeddings[order])
    for key, value in whole.items():
        torch.testing.assert_close(shuffled[key], value[order])
        torch.testing.assert_close(head(embeddings[:1])[key], value[:1])


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@every_head
def test_narrowing_a_model_leaves_its_head_alone(name: str, narrow: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(5, 5), make(name))
    before = {key: value.clone() for key, value in model[1].state_dict().items()}
    model.to(narrow)
    assert model[0].weight.dtype == narrow
    torch.testing.assert_close(model[1].state_dict(), before, rtol=0, atol=0)
    tensors = model[1](torch.randn(2, 5).to(narrow))
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert {value.dtype for value in model[1].double().to(narrow).state_dict().values()} == {torch.float32}
    assert {value.device.type for value in model[1].to("meta").state_dict().values()} == {"meta"}


@every_head
def test_layers_are_float32_whatever_the_default(name: str) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        made = {
            value.dtype for value in make_head(ALL[name], 5, True, None, deviation=1.0, seed=1).state_dict().values()
        }
    finally:
        torch.set_default_dtype(torch.float32)
    assert made == {torch.float32}


@every_head
def test_fresh_weights_follow_the_seed(name: str) -> None:
    def weights(seed: int, head_seed: int | None = None) -> torch.Tensor:
        torch.manual_seed(seed)
        head = make_head(ALL[name], 64, True, None, deviation=0.02, seed=head_seed)
        return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(weights(1, head_seed=7), weights(2, head_seed=7))
    assert not torch.equal(weights(1, head_seed=7), weights(1, head_seed=8))


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("mlp")])
def test_fresh_weights_have_the_deviation_that_was_asked_for(name: str) -> None:
    head = make_head(ALL[name], 4000, True, None, deviation=0.02, seed=1)
    layers = [module for module in head.modules() if isinstance(getattr(module, "weight", None), nn.Parameter)]
    assert all(layer.bias.abs().sum() == 0 for layer in layers)
    assert layers[0].weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_fresh_mlp_keeps_the_size_of_its_signals() -> None:
    head = make_head(MLP(hidden_size=300, layers=1), 400, True, None, deviation=0.02, seed=1)
    assert head.hidden[0].weight.std().item() == pytest.approx((3 * 400) ** -0.5, rel=0.02)
    assert head.reward.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert head.hidden[0].bias.abs().sum() == head.reward.bias.abs().sum() == 0


@every_head
def test_a_made_head_is_a_copy(name: str) -> None:
    first, second = make(name), make(name)
    assert not {id(parameter) for parameter in first.parameters()} & {id(p) for p in second.parameters()}
    assert list(ALL[name].parameters()) == []


def test_own_weights_are_for_linear_heads_alone() -> None:
    weights = {"weight": torch.ones(1, 4), "bias": torch.ones(1)}
    assert torch.equal(make_head(Linear(), 4, True, weights, deviation=1.0, seed=1).weight, torch.ones(1, 4))
    assert torch.equal(make_head(None, 4, True, weights, deviation=1.0, seed=1).weight, torch.ones(1, 4))
    assert not (make_head(MLP(), 4, True, weights, deviation=1.0, seed=1).reward.weight == 1).any()


@pytest.mark.parametrize("bias", [True, False])
@every_head
def test_description_builds_the_same_head(name: str, bias: bool, tmp_path) -> None:
    head = make(name, bias=bias).eval()
    torch.save(head.describe(), tmp_path / "head.pt")
    description = torch.load(tmp_path / "head.pt", weights_only=True)
    again = build_head(description).eval()
    again.load_state_dict(head.state_dict())
    assert again.describe() == head.describe()
    embeddings = torch.randn(3, 5)
    torch.testing.assert_close(again(embeddings), head(embeddings), rtol=0, atol=0)


def test_descriptions_written_before_there_were_other_heads_are_read() -> None:
    head = build_head({"kind": "linear", "in_features": 4, "bias": True})
    head.load_state_dict({"weight": torch.ones(1, 4), "bias": torch.ones(1)})
    assert head(torch.ones(1, 4))["rewards"].item() == 5.0
    assert head.describe() == {"kind": "linear", "in_features": 4, "bias": True}


@pytest.mark.parametrize("kind", ["nothing", "aplot_lightning.model.heads.MLP", "os.system", None])
def test_an_unknown_kind_is_refused(kind) -> None:
    with pytest.raises(ValueError, match=r"unknown kind of head .*: this version knows linear, mlp"):
        build_head({"kind": kind, "in_features": 4, "bias": True})


@pytest.mark.parametrize(
    "description",
    [
        {"kind": "mlp", "in_features": 4, "bias": True, "command": "touch x"},
        {"kind": "mlp", "in_features": 4, "bias": True, "layers": 0},
        {"kind": "mlp", "bias": True},
        {"kind": ["mlp"], "in_features": 4, "bias": True},
    ],
)
def test_a_damaged_description_is_refused(description: dict) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        build_head(description)


def test_every_kind_is_registered_under_its_name() -> None:
    assert {type(head) for head in ALL.values()} == set(HEADS.values())
    assert all(kind == head.kind for kind, head in HEADS.items())


class Stranger(Linear):
    """A head of somebody's own."""

    kind = "stranger"


@pytest.mark.parametrize("head", [Stranger(), type("Sly", (MLP,), {})()])
def test_a_head_that_no_checkpoint_could_name_is_refused(head: Head) -> None:
    with pytest.raises(UserError, match=r"model\.head: \w+ is not registered in .*; choose one of Linear, MLP"):
        make_head(head, 4, True, None, deviation=1.0, seed=None)


@pytest.mark.parametrize(
    ("make_wrong", "message"),
    [
        (lambda: MLP(hidden_size=0), "hidden_size must be at least 1, got 0"),
        (lambda: MLP(layers=0), "layers must be at least 1, got 0"),
        (lambda: MLP(activation="sine"), "activation must be one of relu, gelu, silu, tanh, got 'sine'"),
        (lambda: WithVariance(floor=0.0), "floor must be greater than 0 and finite, got 0.0"),
        (lambda: WithConfidence(floor=float("inf")), "floor must be greater than 0 and finite, got inf"),
        (lambda: Ensemble(members=1), "members must be at least 2, got 1"),
        (lambda: Bottleneck(dimension=0), "dimension must be at least 1, got 0"),
    ],
)
def test_values_out_of_range(make_wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_wrong()
