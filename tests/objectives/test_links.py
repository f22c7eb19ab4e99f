from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special, stats
from scipy.special import log_expit
from torch.nn import functional

from aplot_lightning.errors import UserError
from aplot_lightning.objectives import BetaLink, Fidelity, Focal, Hinge, Link, Logistic, Objective, Probit
from aplot_lightning.types import Scores

QUIET = settings(deadline=None, max_examples=50)  # the machine may be busy with other runs
finite = st.floats(-1e4, 1e4)
chances = st.floats(0, 1)
EXTREMES = [-1e4, -100.0, -30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0, 80.0, 1e4]
MIXING = {
    "logistic": Logistic(),
    "hinge": Hinge(),
    "probit": Probit(),
    "probit-model": Probit("model"),
    "focal": Focal(),
    "focal-half": Focal(0.5),
    "beta": BetaLink(),
    "beta-half": BetaLink(0.5, 2.0, 3.0),
}
EVERY = MIXING | {"fidelity": Fidelity(), "fidelity-model": Fidelity("model")}


def side(values=None, n=0, dtype=torch.float64) -> Scores:
    """Scores of n responses with `values` as variance and confidence, or 1."""
    values = torch.ones(n, dtype=dtype) if values is None else torch.as_tensor(values, dtype=dtype)
    zeros = torch.zeros(len(values), dtype=dtype)
    return Scores({"rewards": zeros, "embeddings": zeros[:, None], "variance": values, "confidence": values})


def apply(link, gaps, margins=None, targets=None, chosen=None, rejected=None, columns=None) -> torch.Tensor:
    gaps = torch.as_tensor(gaps, dtype=torch.float64) if not isinstance(gaps, torch.Tensor) else gaps
    margins = torch.zeros_like(gaps) if margins is None else torch.as_tensor(margins, dtype=gaps.dtype)
    targets = torch.ones_like(gaps) if targets is None else torch.as_tensor(targets, dtype=gaps.dtype)
    chosen, rejected = (
        side(scores, len(gaps), gaps.dtype) if not isinstance(scores, Scores) else scores
        for scores in (chosen, rejected)
    )
    return link(gaps, margins, targets, chosen, rejected, columns or {})


# Logistic: scipy's log_expit, torch's binary cross entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_is_minus_log_sigmoid_up_to_ten_thousand(dtype):
    z = torch.tensor(EXTREMES, dtype=dtype)
    loss = Logistic().pointwise(z)
    assert loss.dtype == dtype
    np.testing.assert_allclose(loss, -log_expit(z.numpy()), rtol=1e-6, atol=1e-8)


def test_logistic_gradient_is_bounded_and_right_at_the_extremes():
    z = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    Logistic().pointwise(z).sum().backward()
    assert z.grad.tolist() == [-1.0, -0.5, 0.0]


@QUIET
@given(gap=finite, target=chances)
def test_soft_targets_without_margin_are_binary_cross_entropy(gap, target):
    gaps, targets = torch.tensor([gap], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    expected = functional.binary_cross_entropy_with_logits(gaps, targets)
    torch.testing.assert_close(apply(Logistic(), gaps, targets=targets)[0], expected, rtol=1e-9, atol=1e-12)


@QUIET
@given(gap=finite, margin=finite, target=chances)
def test_the_margin_asks_for_more_on_both_sides(gap, margin, target):
    expected = -target * log_expit(gap - margin) - (1 - target) * log_expit(-gap - margin)
    np.testing.assert_allclose(apply(Logistic(), [gap], [margin], [target]), [expected], rtol=1e-12)


def test_a_new_link_only_gives_its_pointwise_loss():
    class Square(Link):
        def pointwise(self, z: torch.Tensor) -> torch.Tensor:
            return z**2

    assert apply(Square(), [2.0], [0.5], [0.25]).item() == pytest.approx(0.25 * 1.5**2 + 0.75 * 2.5**2)


# Hinge and focal: numpy from the formulas


@QUIET
@given(gap=finite, margin=st.floats(-3, 3), target=chances)
def test_hinge_by_its_formula(gap, margin, target):
    expected = target * max(0.0, 1 - (gap - margin)) + (1 - target) * max(0.0, 1 - (-gap - margin))
    np.testing.assert_allclose(apply(Hinge(), [gap], [margin], [target]), [expected], rtol=1e-9, atol=1e-9)


@QUIET
@given(gap=finite, gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_focal_by_its_formula(gap, gamma):
    expected = (1 - special.expit(gap)) ** gamma * -log_expit(gap) if gap < 15 else 0.0
    np.testing.assert_allclose(apply(Focal(gamma), [gap]), [expected], rtol=1e-7, atol=1e-5 if gap >= 15 else 1e-12)


def test_focal_without_gamma_is_logistic_and_with_it_downweights_easy_pairs():
    gaps = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(apply(Focal(0.0), gaps), apply(Logistic(), gaps))
    share = apply(Focal(2.0), gaps) / apply(Logistic(), gaps)
    np.testing.assert_allclose(share, special.expit(-gaps.numpy()) ** 2, rtol=1e-9)


# Probit and fidelity: scipy's log_ndtr, norm and erfcx


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probit_is_scipys_log_ndtr_up_to_ten_thousand(dtype):
    gaps = torch.tensor(EXTREMES, dtype=dtype)
    loss = apply(Probit(), gaps)
    assert loss.dtype == dtype
    np.testing.assert_allclose(
        loss, -special.log_ndtr(gaps.double().numpy() / np.sqrt(1 + 1e-6)), rtol=1e-6, atol=1e-30
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_of_the_probit_is_the_inverse_mills_ratio_at_the_extremes(dtype):
    z = torch.tensor(EXTREMES, dtype=dtype, requires_grad=True)
    Probit().pointwise(z).sum().backward()
    expected = -np.sqrt(2 / np.pi) / special.erfcx(-z.detach().double().numpy() / np.sqrt(2))
    np.testing.assert_allclose(z.grad, expected, rtol=1e-6, atol=1e-30)


@QUIET
@given(gap=st.floats(-30, 30), margin=st.floats(-3, 3), target=chances, variance=st.floats(0.01, 10))
def test_probit_mixes_soft_targets(gap, margin, target, variance):
    scale = np.sqrt(2 * variance + 1e-6)
    won, lost = (stats.norm.logcdf((sign * gap - margin) / scale) for sign in (1, -1))
    expected = -target * won - (1 - target) * lost
    np.testing.assert_allclose(apply(Probit(variance), [gap], [margin], [target]), [expected], rtol=1e-9)


@QUIET
@given(gap=finite, margin=st.floats(-3, 3), target=chances, variance=st.floats(0.01, 10))
def test_fidelity_by_its_formula(gap, margin, target, variance):
    p, q = (stats.norm.cdf(sign * (gap - margin) / np.sqrt(2 * variance + 1e-6)) for sign in (1, -1))
    expected = 1 - np.sqrt(target * p + 1e-6) - np.sqrt((1 - target) * q + 1e-6)
    np.testing.assert_allclose(apply(Fidelity(variance), [gap], [margin], [target]), [expected], rtol=0, atol=1e-9)


def test_fidelity_is_least_where_the_prediction_is_the_target():
    gaps = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    for target in (0.2, 0.5, 0.9):
        best = gaps[apply(Fidelity(), gaps, targets=torch.full_like(gaps, target)).argmin()]
        assert best.item() == pytest.approx(stats.norm.ppf(target), abs=0.005)


@pytest.mark.parametrize("kind", [Probit, Fidelity])
def test_variance_of_the_model_a_column_and_a_number_mean_the_same(kind):
    gaps = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    own, other = [0.2, 1.0, 3.0], [0.6, 2.0, 0.5]
    modelled = apply(kind("model"), gaps, chosen=own, rejected=other)
    mean = torch.tensor([0.4, 1.5, 1.75], dtype=torch.float64)
    torch.testing.assert_close(apply(kind("noise"), gaps, columns={"noise": mean}), modelled)
    each = [apply(kind(value), gaps[i : i + 1]) for i, value in enumerate(mean.tolist())]
    torch.testing.assert_close(torch.cat(each), modelled)


@pytest.mark.parametrize("kind", [Probit, Fidelity])
def test_links_of_thurstone_state_what_they_need(kind):
    assert (kind().columns, kind().tensors) == ((), ())
    assert (kind("model").columns, kind("model").tensors) == ((), ("variance",))
    assert (kind("noise").columns, kind("noise").tensors) == (("noise",), ())
    with pytest.raises(UserError, match=rf'^{kind.__name__} needs the column "noise"'):
        apply(kind("noise"), [1.0])


# Beta: scipy's numerical integration, torch.distributions, the closed-form minimum


def integrated(z, tau, weight, a, b):
    """Both terms of the Beta link by numerical integration over the preference."""
    own, prior = stats.beta(special.expit(z) * tau, special.expit(-z) * tau), stats.beta(a, b)
    surprise = integrate.quad(lambda p: -np.log(p) * own.pdf(p), 0, 1)[0]
    divergence = integrate.quad(lambda p: own.pdf(p) * (own.logpdf(p) - prior.logpdf(p)), 0, 1)[0]
    return surprise + weight * divergence


@pytest.mark.parametrize("z", [-1.0, 0.0, 0.7, 1.5])
@pytest.mark.parametrize(
    ("tau", "weight", "a", "b"), [(5.0, 1.0, 1.0, 1.0), (8.0, 0.3, 2.0, 3.0), (20.0, 0.0, 1.5, 1.0)]
)
def test_beta_is_what_integration_gives(z, tau, weight, a, b):
    loss = apply(BetaLink(weight, a, b), [z], chosen=[tau - 1], rejected=[tau + 1])
    assert loss.item() == pytest.approx(integrated(z, tau, weight, a, b), rel=1e-7)


@QUIET
@given(z=st.floats(-10, 10), tau=st.floats(0.01, 1e4), a=st.floats(0.1, 10), b=st.floats(0.1, 10))
def test_beta_divergence_is_that_of_torch_distributions(z, tau, a, b):
    wide = torch.tensor([z], dtype=torch.float64)
    alpha, beta = torch.sigmoid(wide) * tau, torch.sigmoid(-wide) * tau
    own, prior = torch.distributions.Beta(alpha, beta), torch.distributions.Beta(wide * 0 + a, wide * 0 + b)
    expected = (
        special.digamma(tau) - special.digamma(alpha.numpy()) + torch.distributions.kl_divergence(own, prior).numpy()
    )
    loss = apply(BetaLink(1.0, a, b), wide, chosen=[tau], rejected=[tau])
    np.testing.assert_allclose(loss, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 3.0), (0.5, 4.0)])
def test_free_minimum_of_the_beta_link_is_the_posterior_of_one_win(a, b):
    """At λ = 1 the loss is the negative evidence bound: least at Beta(α₀ + 1, β₀), where it is -log(α₀ / (α₀ + β₀))."""
    link = BetaLink(1.0, a, b)

    def loss(point):
        return apply(link, [point[0]], chosen=[np.exp(point[1])], rejected=[np.exp(point[1])]).item()

    found = optimize.minimize(loss, [0.0, 0.0], tol=1e-12)
    mean, tau = special.expit(found.x[0]), np.exp(found.x[1])
    np.testing.assert_allclose([mean * tau, (1 - mean) * tau], [a + 1, b], rtol=1e-3)
    assert found.fun == pytest.approx(-np.log(a / (a + b)), abs=1e-8)
    exact = [np.log((a + 1) / b)]
    assert apply(link, exact, chosen=[a + b + 1], rejected=[a + b + 1]).item() == pytest.approx(-np.log(a / (a + b)))
    assert link.pointwise(torch.tensor(exact, dtype=torch.float64)).item() == pytest.approx(-np.log(a / (a + b)))


def test_beta_mixes_soft_targets_with_the_same_confidence():
    link = BetaLink(0.7, 2.0, 3.0)
    loss = apply(link, [0.4], [0.1], [0.3], chosen=[2.0], rejected=[6.0])
    expected = 0.3 * integrated(0.3, 4.0, 0.7, 2.0, 3.0) + 0.7 * integrated(-0.5, 4.0, 0.7, 2.0, 3.0)
    assert loss.item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("sign", [-1, 1])
def test_beta_continues_along_its_tangent(sign):
    link, tau = BetaLink(0.5, 2.0, 1.5), torch.full((3,), 4.0, dtype=torch.float64)
    z = sign * torch.tensor([9.999999, 10.0, 10.000001], dtype=torch.float64)
    before, at, after = link.pointwise(z, tau).tolist()
    assert after - at == pytest.approx(at - before, rel=1e-4)
    far = link.pointwise(sign * torch.tensor([20.0, 30.0, 40.0], dtype=torch.float64), tau)
    assert (far[1] - far[0]).item() == pytest.approx((far[2] - far[1]).item())
    assert (far[1] - far[0]).item() == pytest.approx(10 * (after - at) / 1e-6, rel=1e-4)


def test_beta_needs_confidence():
    assert Objective(link=BetaLink()).tensors == {"confidence": "BetaLink"}


# Every link


@pytest.mark.parametrize("name", EVERY)
def test_gradcheck(name):
    gaps = torch.tensor([-12.0, -2.1, -0.3, 0.2, 1.7, 12.0], dtype=torch.float64, requires_grad=True)
    margins = torch.tensor([0.1, 0.5, 0.0, -0.4, 2.1, 0.3], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1.0, 0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    own = torch.tensor([0.3, 1.0, 2.0, 5.0, 0.7, 4.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([0.6, 2.0, 1.0, 0.2, 3.0, 1.0], dtype=torch.float64, requires_grad=True)

    def loss(gaps, margins, own, other):
        sides = (Scores({**side(n=6).tensors, "variance": v, "confidence": v}) for v in (own, other))
        return EVERY[name](gaps, margins, targets, *sides, {})

    assert torch.autograd.gradcheck(loss, (gaps, margins, own, other), rtol=1e-3)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("confidence", [0.01, 1.0, 1e4])
def test_finite_and_without_nan_at_the_extremes_in_float32(name, confidence):
    gaps = torch.tensor(EXTREMES, requires_grad=True)
    targets = torch.linspace(0, 1, len(EXTREMES))
    own = side(torch.full((len(EXTREMES),), confidence), dtype=torch.float32).map(
        lambda tensor: tensor.requires_grad_()
    )
    for soft in (torch.ones_like(gaps), targets):
        loss = apply(EVERY[name], gaps, targets=soft, chosen=own, rejected=own)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss).all()
        loss.sum().backward()
    assert torch.isfinite(gaps.grad).all()
    assert all(tensor.grad is None or torch.isfinite(tensor.grad).all() for tensor in own.tensors.values())


@QUIET
@given(gap=finite, margin=st.floats(-3, 3), target=chances, name=st.sampled_from(sorted(MIXING)))
def test_swapping_sides_and_target_changes_nothing(gap, margin, target, name):
    plain = apply(MIXING[name], [gap], [margin], [target])
    torch.testing.assert_close(apply(MIXING[name], [-gap], [margin], [1 - target]), plain)


@QUIET
@given(
    low=st.floats(-20, 20),
    step=st.floats(0.01, 5),
    name=st.sampled_from(["logistic", "hinge", "probit", "focal", "fidelity"]),
)
def test_a_larger_gap_never_costs_more(low, step, name):
    near, far = apply(EVERY[name], [low, low + step]).tolist()
    assert far <= near
