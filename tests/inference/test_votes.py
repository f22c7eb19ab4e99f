from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.errors import UserError
from aplot_lightning.inference.vote_calibration import GRIDS, calibrate, density_ratio, fit_scale
from aplot_lightning.inference.vote_curve import powers_of_two, vote_curves
from aplot_lightning.inference.votes import VOTES, Ballot, Scale, Weighting, hold_vote, leaders, logit, tally

ANSWERS = st.lists(st.sampled_from(["4", "5", " 4 ", "x", None]), min_size=1, max_size=12)


@given(ANSWERS)
def test_the_majority_is_counters(answers):
    outcome = hold_vote(Ballot.of(answers, np.zeros(len(answers))), Weighting("majority"))
    counts = Counter(answer.strip() for answer in answers if answer is not None)
    if not counts:
        assert outcome is None
        return
    assert outcome is not None
    assert outcome.totals == dict(counts)
    assert outcome.answer == counts.most_common(1)[0][0]  # Counter too keeps the first of equals
    assert set(outcome.tied) == {answer for answer, count in counts.items() if count == max(counts.values())}


def test_every_form_by_hand():
    ballot = Ballot.of(["a", "b", "b", "c", None], [0.9, 0.5, 0.6, 0.2, 1.0])
    ratio = lambda p: 10 * p - 5  # noqa: E731
    expected = {
        "majority": {"a": 1, "b": 2, "c": 1},
        "best": {"a": 0.9, "b": 0.6, "c": 0.2},
        "raw": {"a": 0.9, "b": 1.1, "c": 0.2},
        "linear": {"a": 0.2, "b": -0.3, "c": -0.5},
        "logit": {
            "a": np.log(0.9 / 0.1) - np.log(7 / 3),
            "b": np.log(0.5 / 0.5) + np.log(0.6 / 0.4) - 2 * np.log(7 / 3),
            "c": np.log(0.2 / 0.8) - np.log(7 / 3),
        },
        "density": {
            "a": 4 + np.log(0.25 * 2 / 0.75),
            "b": 0 + 1 + 2 * np.log(0.25 * 2 / 0.75),
            "c": -3 + np.log(0.25 * 2 / 0.75),
        },
    }
    assert set(expected) == set(VOTES)
    for vote, totals in expected.items():
        weighting = Weighting(vote, threshold=0.7, log_ratio=ratio, accuracy=0.25)
        outcome = hold_vote(ballot, weighting)
        assert outcome is not None
        assert outcome.totals == pytest.approx(totals)
        assert outcome.answer == max(totals, key=totals.__getitem__)
    known = hold_vote(ballot, Weighting("density", log_ratio=ratio, accuracy=0.25), choices=10)
    assert known is not None
    assert known.totals["b"] == pytest.approx(1 + 2 * np.log(0.25 * 9 / 0.75))


def test_ties_are_stated_and_the_first_sampled_wins():
    outcome = hold_vote(Ballot.of(["b", "a", "a", "b", "c"], np.full(5, 0.1)), Weighting("raw"))
    assert outcome is not None
    assert (outcome.answer, outcome.tied) == ("b", ("b", "a"))
    # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last place
    rounded = hold_vote(Ballot.of(list("aaabbb"), [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]), Weighting("raw"))
    assert rounded is not None
    assert rounded.tied == ("a", "b")


def test_a_single_answer_wins_whatever_its_weight():
    outcome = hold_vote(Ballot.of(["a", "a"], [-3.0, -4.0]), Weighting("density", log_ratio=lambda p: p - 9.0))
    assert outcome is not None
    assert outcome.answer == "a"


def test_many_votes_at_once_are_each_on_its_own():
    random = np.random.default_rng(0)
    codes, rewards = random.integers(-1, 4, size=(20, 7)), random.normal(size=(20, 7))
    for vote in VOTES:
        weighting = Weighting(vote, Scale(1.0), 0.4, np.tanh, 0.3)
        together = tally(codes, rewards, 4, weighting)
        for row, (own, values) in enumerate(zip(codes, rewards, strict=True)):
            np.testing.assert_allclose(together[row], tally(own[None], values[None], 4, weighting)[0])
    silent = tally(np.full((1, 3), -1), np.zeros((1, 3)), 2, Weighting("majority"))
    assert not leaders(silent).any()


def simulated(seed: int, prompts: int, samples: int, *, q: float = 0.3, m: int = 4, shift: float = 1.0):
    """The formula's own world: answers right with probability q, else any of m - 1; normal logits of p."""
    random = np.random.default_rng(seed)
    right = random.random((prompts, samples)) < q
    codes = np.where(right, 0, random.integers(1, m, size=right.shape))
    logits = random.normal(np.where(right, shift, -0.5), np.where(right, 0.8, 1.2))
    return codes, logits


def ballots_of(codes, logits) -> list[Ballot]:
    return [
        Ballot.of([str(code) for code in own], 1 / (1 + np.exp(-values)), "0")
        for own, values in zip(codes, logits, strict=True)
    ]


def bayes(codes, logits, q: float, m: int, shift: float) -> np.ndarray:
    """Who has the largest posterior, from scipy's densities."""
    from scipy.stats import norm

    if_right = norm.logpdf(logits, shift, 0.8) + np.log(q)
    if_wrong = norm.logpdf(logits, -0.5, 1.2) + np.log((1 - q) / (m - 1))
    posterior = np.stack([np.where(codes == k, if_right, if_wrong).sum(axis=1) for k in range(m)], axis=1)
    return posterior.argmax(axis=1)


def test_the_density_vote_meets_the_bayes_optimal_one_and_no_other_form_beats_it():
    q, m, shift = 0.3, 4, 1.0
    learnt = ballots_of(*simulated(1, 500, 16, q=q, m=m, shift=shift))
    codes, logits = simulated(2, 1500, 16, q=q, m=m, shift=shift)
    ballots = ballots_of(codes, logits)
    optimal = bayes(codes, logits, q, m, shift)
    weightings = {vote: calibrate(vote, learnt, choices=m) for vote in VOTES}
    accuracy = {}
    for vote, weighting in weightings.items():
        outcomes = [hold_vote(ballot, weighting, choices=m) for ballot in ballots]
        accuracy[vote] = np.mean([outcome.answer == "0" for outcome in outcomes])
        if vote == "density":
            agreement = np.mean([o.answer == str(best) for o, best in zip(outcomes, optimal, strict=True)])
            assert agreement > 0.95
    best = np.mean(optimal == 0)
    assert weightings["density"].accuracy == pytest.approx(q, abs=0.02)
    assert accuracy["density"] == pytest.approx(best, abs=0.012)
    assert max(accuracy.values()) < best + 0.012
    assert accuracy["majority"] < accuracy["raw"] < accuracy["density"]
    assert accuracy["logit"] > accuracy["raw"]


def test_density_ratios_are_those_of_the_densities():
    from scipy.stats import norm

    random = np.random.default_rng(0)
    logits = np.concatenate([random.normal(1, 0.8, 4000), random.normal(-0.5, 1.2, 4000)])
    ratio = density_ratio(1 / (1 + np.exp(-logits)), np.repeat([True, False], 4000))
    points = np.linspace(-1, 2, 7)
    expected = norm.logpdf(points, 1, 0.8) - norm.logpdf(points, -0.5, 1.2)
    np.testing.assert_allclose(ratio(1 / (1 + np.exp(-points))), expected, atol=0.25)
    extreme = ratio(np.array([0.0, 1.0]))
    assert np.isfinite(extreme).all()
    assert (np.abs(extreme) <= 20).all()
    same = density_ratio(np.array([0.8, 0.8, 0.2, 0.2]), np.array([True, True, False, False]))
    assert same(np.array([0.8]))[0] > 0 > same(np.array([0.2]))[0]


def test_platts_scale_is_the_maximum_likelihood():
    from scipy.optimize import minimize

    random = np.random.default_rng(3)
    rewards = random.normal(5, 30, 400)
    right = random.random(400) < 1 / (1 + np.exp(-(0.08 * rewards - 1.0)))
    scale = fit_scale(rewards, right)
    high, low = (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2)
    targets = np.where(right, high, low)

    def loss(line):
        p = 1 / (1 + np.exp(-(line[0] * rewards + line[1])))
        return -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p))

    best = minimize(loss, [0.05, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    assert (scale.slope, scale.offset) == pytest.approx(tuple(best), abs=2e-3)
    separable = fit_scale([0.0, 1.0, 2.0, 3.0], [False, False, True, True])
    assert np.isfinite(separable.slope)


@pytest.mark.parametrize("vote", ["linear", "logit"])
def test_b_is_the_best_of_its_grid(vote):
    ballots = ballots_of(*simulated(4, 60, 8))
    found = calibrate(vote, ballots)

    def accuracy(b: float) -> float:
        outcomes = [hold_vote(ballot, Weighting(vote, threshold=float(b))) for ballot in ballots]
        return np.mean([("0" in o.tied) / len(o.tied) for o in outcomes])

    assert found.threshold in GRIDS[vote]
    assert accuracy(found.threshold) == pytest.approx(max(accuracy(b) for b in GRIDS[vote]), abs=1e-9)


def test_what_cannot_be_calibrated_is_said():
    one = Ballot.of(["a"], [0.5], [True])
    other = Ballot.of(["a"], [0.5], [False])
    for ballots, message in {
        (one, one): "0 of 2 labelled samples are wrong",
        (one, other, other): "1 of 3 labelled samples are right",
    }.items():
        with pytest.raises(UserError, match=message):
            calibrate("density", ballots)
    with pytest.raises(UserError, match="different answers"):
        calibrate("logit", [one, one, other, other])
    assert calibrate("majority", []) == Weighting("majority")


def test_curves_are_the_mean_over_nested_subsets():
    ballots = [Ballot.of(list("aab"), [0.1, 0.2, 0.9], "a"), Ballot.of(list("cd"), [0.7, 0.4], "d")]
    curves = vote_curves(ballots, {vote: Weighting(vote) for vote in ("majority", "best")}, draws=4000)
    majority, best = curves["majority"], curves["best"]
    assert [point.samples for point in majority] == [1, 2, 3]
    assert [point.prompts for point in majority] == [2, 2, 1]
    assert majority[0].accuracy == pytest.approx((2 / 3 + 1 / 2) / 2, abs=0.02)
    # of aab two: aa (right), ab twice (half); of cd both: half
    assert majority[1].accuracy == pytest.approx((2 / 3 + 1 / 2) / 2, abs=0.02)
    assert majority[2].accuracy == 1
    # the b of aab wins wherever it is, and c wins over d
    assert best[1].accuracy == pytest.approx((1 / 3 + 0) / 2, abs=0.02)
    assert best[2].accuracy == 0
    assert majority[0].interval is not None
    assert majority[2].interval is None  # a single prompt
    again = vote_curves(ballots, {"majority": Weighting("majority")}, draws=4000)
    assert again["majority"] == majority  # the same draws for every form, from the seed
    assert vote_curves([Ballot.of(["a"], [1.0])], {"majority": Weighting("majority")}) == {"majority": []}


def test_labels():
    ballot = Ballot.of([" 7", "8", None], [1, 2, 3], "7 ")
    assert ballot.right is not None
    assert ballot.right.tolist() == [True, False]
    assert ballot.sample_right.tolist() == [True, False, False]
    assert Ballot.of(["7", "8", None], [1, 2, 3], [False, True, False]).right.tolist() == [False, True]
    assert Ballot.of(["7"], [1], "absent").right.tolist() == [False]
    with pytest.raises(ValueError, match="right and wrong"):
        Ballot.of(["7", "7"], [1, 2], [True, False])
    with pytest.raises(ValueError, match="2 rewards for 1 answers"):
        Ballot.of(["7"], [1, 2])
    with pytest.raises(ValueError, match="1 marks for 2"):
        Ballot.of(["7", "8"], [1, 2], [True])


def test_logits_and_sizes():
    from scipy.special import expit
    from scipy.special import logit as reference

    np.testing.assert_allclose(logit([0.2, 0.5, 0.99]), reference([0.2, 0.5, 0.99]))
    assert np.isfinite(logit([0.0, 1.0])).all()
    np.testing.assert_allclose(Scale(2.0, -1.0)([-800.0, 0.3]), expit([-1601.0, -0.4]), atol=1e-12)
    assert [powers_of_two(n) for n in (1, 2, 5, 8)] == [[1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8]]
