from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.inference.normalisation import KEY, Normalisation, Running, card_section, with_normalisation

FOUND = Normalisation(mean=1.5, scale=2.0, rewards=40, data="pairs.jsonl")


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 9))
def test_running_mean_and_scale_are_numpys(values, size):
    running = Running()
    for start in range(0, len(values), size):
        running.update(values[start : start + size])
    assert running.count == len(values)
    assert running.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert running.scale == pytest.approx(np.std(values), abs=1e-6)


def test_rewards_far_from_zero_lose_nothing():
    values = 1e8 + np.random.default_rng(0).normal(size=1000)
    running = Running()
    running.update(values.tolist())
    assert running.scale == pytest.approx(np.std(values - 1e8), rel=1e-6)


def test_a_config_takes_the_entry_and_loses_a_former_models():
    text = with_normalisation('{"b": 1, "a": "é"}', FOUND)
    assert json.loads(text)[KEY] == {"mean": 1.5, "scale": 2.0, "rewards": 40, "data": "pairs.jsonl"}
    assert json.loads(with_normalisation(text, None)) == {"b": 1, "a": "é"}
    assert FOUND(5.5) == 2.0
    assert "mean 1.5 and standard deviation 2" in card_section(FOUND)
