from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from aplot_lightning.model.heads import LinearHead, build_head


def test_reward_is_the_dot_product_in_float32():
    head = LinearHead(5, bias=True)
    head.reset(1.0)
    nn.init.constant_(head.bias, 0.25)
    embeddings = torch.randn(3, 5)
    expected = embeddings.numpy() @ head.weight.detach().numpy()[0] + 0.25
    np.testing.assert_allclose(head(embeddings).detach().numpy(), expected, rtol=1e-5)
    assert head(embeddings.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_narrowing_a_model_leaves_its_head_alone(narrow):
    model = nn.Sequential(nn.Linear(4, 4), LinearHead(4, bias=True))
    before = model[1].weight.detach().clone()
    model.to(narrow)
    assert model[0].weight.dtype == narrow
    assert model[1].weight.dtype == model[1].bias.dtype == torch.float32
    assert torch.equal(model[1].weight, before)


def test_a_head_may_be_widened_and_brought_back():
    head = LinearHead(4, bias=False).double()
    assert head.weight.dtype == torch.float64
    assert head.float().weight.dtype == torch.float32
    assert head.to("meta").weight.device.type == "meta"


def test_reset_from_a_generator_leaves_the_global_state_alone():
    head, other = LinearHead(64, bias=True), LinearHead(64, bias=True)
    state = torch.get_rng_state()
    head.reset(0.02, torch.Generator().manual_seed(3))
    other.reset(0.02, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(head.weight, other.weight)
    assert 0.01 < head.weight.std().item() < 0.03
    assert head.bias.item() == 0


@pytest.mark.parametrize("bias", [True, False])
def test_description_builds_the_same_shape(bias):
    head = LinearHead(7, bias=bias)
    again = build_head(head.describe())
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.weight, head.weight)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind of head 'mlp'"):
        build_head({"kind": "mlp", "in_features": 4, "bias": True})
