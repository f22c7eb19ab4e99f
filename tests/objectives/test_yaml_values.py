"""One loss value of each file of conf/objective/ against its formula, in plain Python with the published constants."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import betaln, expit, log_expit

from aplot_lightning.objectives import Objective
from aplot_lightning.types import Pairs, Scores
from tests.shipped import CONF, shipped

PAIRS = [  # chosen and rejected reward; the order of rows is mixed below
    (3.1, 0.6),
    (0.7, 1.9),
    (1.2, 1.2),
    (2.5, 2.1),
    (-1.0, -1.8),
]
N = len(PAIRS)
GAPS = [chosen - rejected for chosen, rejected in PAIRS]
ALL = [reward for pair in PAIRS for reward in pair]
SUFFIXES = [(10, 12), (7, 7), (30, 25), (4, 9), (1, 16)]
LENGTHS = [(40, 31), (12, 18), (25, 25), (33, 20), (8, 15)]
QUALITY = [(4.0, 2.5), (3.0, 3.5), (1.0, 1.0), (5.0, 1.0), (2.0, 1.5)]
SECOND = [(0.5, 3.0), (2.0, 1.0), (4.0, 0.2), (1.0, 1.5), (2.5, 2.5)]  # any other tensor: KL, confidence ...
LOG_PROBABILITY = [-12.0, -3.5, -40.0, -0.2, -7.7]


def bt(gap: float) -> float:
    return -log_expit(gap)


def probability(gap: float) -> float:
    return stats.norm.cdf(gap / math.sqrt(1 + 1e-6))


def pearson(name: list[tuple[float, float]]) -> float:
    return stats.pearsonr(np.ravel(name), np.ravel(LENGTHS)).statistic


def beta_bound(gap: float, confidences: tuple[float, float]) -> float:
    """E[-log p] + KL(Beta(α, β) ‖ uniform), integrated over the log-odds of p."""
    tau = fmean(confidences)
    alpha, beta = expit(gap) * tau, expit(-gap) * tau

    def integrand(logit: float) -> float:
        p, q = log_expit(logit), log_expit(-logit)
        density = (alpha - 1) * p + (beta - 1) * q - betaln(alpha, beta)
        return math.exp(density + p + q) * (density - p)

    return sum(integrate.quad(integrand, *part)[0] for part in ((-400, -20), (-20, 0), (0, 20), (20, 400)))


EXPECTED = {
    "aot": lambda: fmean(map(bt, np.sort([c for c, _ in PAIRS]) - np.sort([r for _, r in PAIRS]))),
    "beta": lambda: fmean(map(beta_bound, GAPS, SECOND)),
    "bsr": lambda: fmean(map(bt, GAPS)) + 0.001 * N * fmean(ALL) ** 2,
    "centering": lambda: fmean(map(bt, GAPS)) + 0.01 * fmean((c + r) ** 2 for c, r in PAIRS),
    "fidelity": lambda: fmean(1 - math.sqrt(probability(gap) + 1e-6) - math.sqrt(1e-6) for gap in GAPS),
    "focal": lambda: fmean((1 - expit(gap)) ** 2 * bt(gap) for gap in GAPS),
    "grm_sft": lambda: 0.99 * fmean(map(bt, GAPS)) + 0.01 * fmean(bt(0.1 * value) for value in LOG_PROBABILITY),
    "hinge": lambda: fmean(max(0.0, 1 - gap) for gap in GAPS),
    "inform": lambda: fmean(map(bt, GAPS)) + 0.1 * fmean(c + r for c, r in SECOND),
    "mmpo": lambda: fmean(
        expit(1.1 * (c - r)) * bt(gap) + expit(1.1 * (r - c)) * bt(-gap)
        for gap, (c, r) in zip(GAPS, QUALITY, strict=True)
    ),
    "odin": lambda: fmean(map(bt, GAPS)) + abs(pearson(QUALITY)) - pearson(SECOND) + 0.25,
    "pcrm": lambda: fmean(
        bt(gap) + bt(10 / (min(pair) / max(pair) + 0.001) - 5 - gap) for gap, pair in zip(GAPS, SUFFIXES, strict=True)
    ),
    "positive": lambda: fmean(map(bt, GAPS)) + 0.1 * bt(fmean(c for c, _ in PAIRS)),
    "thurstone": lambda: fmean(-math.log(probability(gap)) for gap in GAPS),
}


def build(name: str) -> Objective:
    return shipped(f"--config={CONF / name}.yaml").objective


@pytest.fixture
def batch() -> tuple[Scores, Pairs]:
    order = torch.tensor([3, 8, 0, 5, 1, 9, 2, 7, 4, 6])

    def rows(values: list[tuple[float, float]]) -> torch.Tensor:
        placed = torch.empty(2 * N, dtype=torch.float64)
        placed[order] = torch.tensor(values, dtype=torch.float64).T.flatten()
        return placed

    tensors = {
        "rewards": rows(PAIRS),
        "embeddings": rows(PAIRS)[:, None],
        "confidence": rows(SECOND),
        "kl": rows(SECOND),
        "quality_rewards": rows(QUALITY),
        "length_rewards": rows(SECOND),
        "head_overlap": torch.full((2 * N,), 0.25, dtype=torch.float64),
        "log_probability": rows([(value, -1.0) for value in LOG_PROBABILITY]),
    }
    columns = {}
    for name, values in (("suffix", SUFFIXES), ("length", LENGTHS), ("score", QUALITY)):
        for index, side in enumerate(("chosen", "rejected")):
            columns[f"{side}_{name}"] = torch.tensor([pair[index] for pair in values], dtype=torch.float32)
    return Scores(tensors), Pairs(order[:N], order[N:], columns)


@pytest.mark.parametrize("name", EXPECTED)
def test_loss_value(batch, name):
    objective = build(name)
    objective.require(batch[1].columns, batch[0].tensors)
    loss = objective(*batch).loss.item()
    assert loss == pytest.approx(EXPECTED[name](), rel=1e-6)
    assert abs(loss - fmean(map(bt, GAPS))) > 1e-4  # none of them is Bradley–Terry
