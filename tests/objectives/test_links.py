from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_expit
from torch.nn import functional

from aplot_lightning.objectives import Link, Logistic

finite = st.floats(-1e4, 1e4)
chances = st.floats(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_is_minus_log_sigmoid_up_to_ten_thousand(dtype):
    z = torch.tensor([-1e4, -100.0, -30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0, 80.0, 1e4], dtype=dtype)
    loss = Logistic().pointwise(z)
    assert loss.dtype == dtype
    np.testing.assert_allclose(loss, -log_expit(z.numpy()), rtol=1e-6, atol=1e-8)


def test_logistic_gradient_is_bounded_and_right_at_the_extremes():
    z = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    Logistic().pointwise(z).sum().backward()
    assert z.grad.tolist() == [-1.0, -0.5, 0.0]


def test_logistic_gradcheck():
    gaps, margins = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    inputs = (gaps.requires_grad_(), margins.requires_grad_(), targets)
    assert torch.autograd.gradcheck(Logistic(), inputs)


@given(gap=finite, target=chances)
def test_soft_targets_without_margin_are_binary_cross_entropy(gap, target):
    gaps, targets = torch.tensor([gap], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    expected = functional.binary_cross_entropy_with_logits(gaps, targets)
    torch.testing.assert_close(Logistic()(gaps, torch.zeros_like(gaps), targets)[0], expected, rtol=1e-9, atol=1e-12)


@given(gap=finite, margin=finite, target=chances)
def test_the_margin_asks_for_more_on_both_sides(gap, margin, target):
    tensors = (torch.tensor([value], dtype=torch.float64) for value in (gap, margin, target))
    expected = -target * log_expit(gap - margin) - (1 - target) * log_expit(-gap - margin)
    np.testing.assert_allclose(Logistic()(*tensors), [expected], rtol=1e-12)


def test_a_new_link_only_gives_its_pointwise_loss():
    class Square(Link):
        def pointwise(self, z: torch.Tensor) -> torch.Tensor:
            return z**2

    loss = Square()(torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([0.25]))
    assert loss.item() == pytest.approx(0.25 * 1.5**2 + 0.75 * 2.5**2)
