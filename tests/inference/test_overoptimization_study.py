"""The study in studies/overoptimization: its pools, its intervals, and the script from runs to page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aplot_lightning.data.world import write_world_decoder
from aplot_lightning.model.reward_model import RewardModel

FILLERS = ("So there.", "Well well.", "Quite so.", "And so on.")
STUDY = Path(__file__).parents[2] / "studies" / "overoptimization"


@pytest.fixture
def study(monkeypatch):
    if not STUDY.is_dir():
        pytest.skip("studies/ is not beside the tests")
    monkeypatch.syspath_prepend(str(STUDY))


def test_pools_are_of_the_world_and_their_gold_is_what_the_texts_say(study):
    import pools

    pool, other = pools.draw_pools("none", 2, 3000, 7)
    again = pools.draw_pools("none", 1, 3000, 7)[0]
    assert (again.prompt, again.texts) == (pool.prompt, pool.texts)
    assert pool.prompt != other.prompt
    assert len(set(pool.texts)) == len(pool.texts) == pool.text.max() + 1
    gold, answers, facts, arithmetic, politeness, fillers, cue = pool.measured.T
    expected = 1.5 * answers + 1.15 * facts + 0.75 * arithmetic + 0.5 * politeness - 0.22 * fillers
    np.testing.assert_allclose(gold, expected)
    for column, share in ((answers, 0.6), (facts, 0.55), (arithmetic, 0.7), (cue, 0.3)):
        assert column.mean() == pytest.approx(share, abs=0.04)
    for place in range(200):  # read back from the text
        text = pool.texts[pool.text[place]]
        assert text.startswith("Great question!") == bool(cue[place])
        spoken = text.removeprefix("Great question! ")
        assert ("Glad to help." in spoken or "Thank you." in spoken) == (politeness[place] == 1)
        assert (
            sum(filler in spoken for filler in ("So there.", "Well well.", "Quite so.", "And so on.")) == fillers[place]
        )
    same = pool.text[:, None] == pool.text[None, :300]
    assert (np.where(same, np.abs(gold[:, None] - gold[None, :300]), 0) < 1e-9).all()  # one text, one reward
    a, b = map(int, re.findall(r"\d+", pool.prompt))
    right = [place for place in range(300) if arithmetic[place]]
    assert all(re.search(rf"\b({a + b}|{abs(a - b)})\b", pool.texts[pool.text[place]]) for place in right)


def test_intervals_are_over_prompts_and_seeds(study):
    import report

    random = np.random.default_rng(0)
    values = random.normal(size=(1, 400, 2)) * [1.0, 3.0]
    draws = report.resampled(values)
    np.testing.assert_allclose(draws.std(0), np.array([1.0, 3.0]) / 20, rtol=0.15)
    seeds = np.repeat(random.normal(size=(40, 1, 1)), 5, axis=1)  # only seeds differ
    assert report.resampled(seeds).std() == pytest.approx(seeds.std() / np.sqrt(40), rel=0.15)


def checkpoint(folder: Path, backbone: Path, seed: int) -> None:
    model = RewardModel.from_backbone(str(backbone), head_seed=seed)
    state = {f"reward_model.{name}": value for name, value in model.state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"reward_model": model.describe(), "state_dict": state}, folder / "checkpoints" / "best.ckpt")
    (folder / "metrics.json").write_text("{}")


def test_from_runs_to_a_page_and_on_with_further_runs(study, tmp_path):
    backbone = tmp_path / "backbone"
    write_world_decoder(backbone)
    config = json.loads((backbone / "config.json").read_text())
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    (backbone / "config.json").write_text(json.dumps({**config, **small}))
    runs, page = tmp_path / "runs", tmp_path / "README.md"
    page.write_text("before\n<!-- figures: begin -->stale<!-- figures: end -->\nbehind\n")
    checkpoint(runs / "bt" / "seed0", backbone, 0)
    words = ["--runs", str(runs), "--scores", str(tmp_path / "scores"), "--output", str(tmp_path)]
    command = [sys.executable, str(STUDY / "run.py"), *words, "--prompts", "2", "--samples", "40"]
    subprocess.run(command, capture_output=True, text=True, check=True)
    checkpoint(runs / "aplot" / "seed0", backbone, 1)
    second = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"(\w+) seed 0 \w+: 2 pools", second) == ["aplot", "aplot"]  # bt is not scored again
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nbehind\n")
    assert "stale" not in text
    assert text.count("| bt | 1 |") == text.count("| aplot | 1 |") == 2
    assert (tmp_path / "plot.png").stat().st_size > 10_000
