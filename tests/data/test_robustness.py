"""A part of the training data, and swapped labels: which they are, what goes with them, and what stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aplot_lightning import PreferenceDataModule, RewardModelingModule
from aplot_lightning.data.robustness import uniform
from aplot_lightning.errors import UserError
from aplot_lightning.model.locate import ASSETS
from aplot_lightning.model.tokenizer import load_tokenizer
from tests.runs import PLAIN, plain_trainer

TOKENIZER = load_tokenizer(str(ASSETS / "world-decoder"), "model", "world-decoder")
COUNT = 600

pytestmark = PLAIN


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pair(number: int) -> dict[str, Any]:
    values = {"margin": number + 0.5, "target": 0.75, "chosen_score": 2.0, "rejected_score": 1.0}
    return {"prompt": f"question {number} ?", "chosen": f"yes {number}", "rejected": "no", **values}


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write(tmp_path / "pairs.jsonl", map(pair, range(COUNT)))


def read(train: Any, **options: Any) -> PreferenceDataModule:
    data = PreferenceDataModule(train, **options)
    data.tokenizer = TOKENIZER
    data.setup()
    return data


def said(encoded: Any) -> dict[float, tuple[str, str]]:
    """Margin (a name for the pair) -> the texts of what counts as chosen and as rejected, from the tokens."""
    found = {}
    for place in range(len(encoded)):
        texts = [TOKENIZER.decode(row) for row in encoded.rows(place)]
        for at in range(encoded.first_pair[place], encoded.first_pair[place + 1]):
            both = texts[encoded.winners[at]], texts[encoded.losers[at]]
            found[float(encoded.columns["margin"][at])] = both
    return found


def flipped(data: PreferenceDataModule) -> set[float]:
    """The training pairs whose chosen text is the one that the file calls rejected."""
    return {name for name, (chosen, _) in said(data.training_pairs).items() if "yes" not in chosen.lower()}


def close(found: int, share: float, of: int) -> bool:
    return abs(found - share * of) < 4 * sqrt(of * share * (1 - share))


def test_the_hash_is_a_fixed_one_and_even() -> None:
    """The first output of the published SplitMix64 for two seeds, as the reference C code gives it."""
    from aplot_lightning.data.robustness import _mixed

    assert _mixed(np.asarray([1234567, 0], dtype=np.uint64)).tolist() == [6457827717110365317, 16294208416658607535]
    from scipy.stats import kstest

    places = uniform(np.arange(20_000, dtype=np.uint64), 3, 1)
    assert kstest(places, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(places, uniform(np.arange(20_000, dtype=np.uint64), 3, 2))[0, 1]) < 0.03


def test_a_smaller_part_lies_in_a_larger_one_and_held_out_sets_stay(source: str) -> None:
    whole = read(source)
    trained = {share: set(said(read(source, train_fraction=share).training_pairs)) for share in (0.1, 0.5, 0.9)}
    everything = set(said(whole.training_pairs))
    assert trained[0.1] < trained[0.5] < trained[0.9] < everything
    assert all(close(len(trained[share]), share, len(everything)) for share in trained)
    part = read(source, train_fraction=0.1)
    for name, held_out in whole.evaluation_sets.items():
        assert said(part.evaluation_sets[name].encoded) == said(held_out.encoded)


def test_which_part_follows_from_the_seed_and_the_texts_alone(source: str, tmp_path: Path) -> None:
    one = set(said(read(source, train_fraction=0.5, seed=1).training_pairs))
    assert one == set(said(read(source, train_fraction=0.5, seed=1, batch_size=7).training_pairs))
    turned = write(tmp_path / "turned.jsonl", map(pair, reversed(range(0, COUNT, 2))))
    even = {name for name in said(read(source).training_pairs) if int(name) % 2 == 0}
    assert set(said(read(turned, train_fraction=0.5, seed=1).training_pairs)) == one & even
    other = set(said(read(source, train_fraction=0.5, seed=2).training_pairs))
    assert close(len(one & other), 0.5, len(one))


def test_swapped_pairs_are_nested_and_of_the_asked_share_and_only_trained_on(source: str) -> None:
    swapped = {share: flipped(read(source, label_noise=share)) for share in (0.1, 0.25)}
    everything = said(read(source).training_pairs)
    assert swapped[0.1] < swapped[0.25]
    assert all(close(len(found), share, len(everything)) for share, found in swapped.items())
    part = read(source, label_noise=0.25, train_fraction=0.5)
    assert flipped(part) == swapped[0.25] & set(said(part.training_pairs))
    for held_out in part.evaluation_sets.values():
        assert all("yes" in chosen.lower() for chosen, _ in said(held_out.encoded).values())
    other = flipped(read(source, label_noise=0.25, seed=5))
    assert close(len(other & swapped[0.25]), 0.25, len(other))


def test_lengths_go_with_the_text_and_what_the_annotator_said_stays_with_the_side(source: str) -> None:
    encoded = read(source, label_noise=0.4).training_pairs
    assert encoded is not None
    for place in range(len(encoded)):
        rows = encoded.rows(place)
        starts = encoded.response_starts(place)
        for side, chosen in (("chosen", encoded.winners), ("rejected", encoded.losers)):
            own = chosen[place]
            assert encoded.columns[f"{side}_length"][place] == len(rows[own]) - starts[own]
    for name, value in {"target": 0.75, "chosen_score": 2.0, "rejected_score": 1.0}.items():
        assert (encoded.columns[name] == value).all()


def test_each_pair_of_a_ranking_is_swapped_by_itself(tmp_path: Path) -> None:
    words = ["one", "two", "three", "four"]
    rows = [
        {"prompt": f"question {number} ?", "responses": words, "scores": [4.0, 3.0, 2.0, 1.0]} for number in range(90)
    ]
    source = write(tmp_path / "ranked.jsonl", rows)
    plain, noisy = (read(source, label_noise=share).training_pairs for share in (0.0, 0.3))
    assert plain is not None
    assert noisy is not None
    turned = noisy.winners != plain.winners
    assert close(int(turned.sum()), 0.3, plain.pairs)
    by_comparison = np.add.reduceat(turned, plain.first_pair[:-1])
    assert {1, 2, 3} <= set(by_comparison.tolist())
    assert (np.where(turned, noisy.losers, noisy.winners) == plain.winners).all()
    assert (np.where(turned, noisy.winners, noisy.losers) == plain.losers).all()


def test_the_data_report_states_both(source: str, tmp_path: Path) -> None:
    data = read(source, label_noise=0.25, train_fraction=0.5, seed=4)
    data.report.write(tmp_path)
    account = json.loads((tmp_path / "data_report.json").read_text())["robustness"]
    assert account["comparisons"]["trained_on"] == len(data.training_pairs or [])
    assert account["pairs"]["swapped"] == len(flipped(data))
    assert (account["label_noise"], account["train_fraction"], account["seed"]) == (0.25, 0.5, 4)
    sentence = f"trained on {account['comparisons']['trained_on']} of {account['comparisons']['all']} training"
    for text in (data.report.to_text(), (tmp_path / "data_report.md").read_text(), *data.report.summary()[-1:]):
        assert sentence in text
    plain = read(source)
    assert "robustness" not in plain.report.as_dict()
    assert "robustness" not in plain.report.to_text() + plain.report.to_markdown()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_noise": 1.0}, "data.label_noise is 1.0: give a share of the pairs, from 0 to below 1"),
        ({"label_noise": -0.1}, "data.label_noise"),
        ({"train_fraction": 0.0}, "data.train_fraction is 0.0: give a share above 0, 1 for all pairs"),
        ({"train_fraction": 1.5}, "data.train_fraction"),
        ({"train_fraction": float("nan")}, "data.train_fraction"),
        ({"train_fraction": 1e-9}, "data.train_fraction is 1e-09: none of .* is left; raise it"),
    ],
)
def test_what_is_no_share_is_said(source: str, options: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(source, **options)


def test_a_stream_is_refused(source: str) -> None:
    with pytest.raises(UserError, match=r"data\.label_noise and data.train_fraction take no stream: leave them out"):
        read({"path": source, "streaming": True}, label_noise=0.25, id_share=0.0, validation_share=0.0)


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_a_head_on_kept_embeddings_trains_as_without_them(laboratory: Any, tmp_path: Path) -> None:
    """The embeddings of a part come out of those of all, which two fractions share."""
    states, kept = [], []
    for cached, seed in ((False, 3), (True, 3), (True, 4)):
        data = PreferenceDataModule(
            str(laboratory.folder / "train.jsonl"), max_length=64, label_noise=0.3, train_fraction=0.4, seed=seed
        )
        torch.manual_seed(1)
        module = RewardModelingModule(
            str(laboratory.folder / "backbone"), freeze_backbone=True, cache_embeddings=cached, learning_rate=3e-3
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("APLOT_CACHE", str(tmp_path / "cache"))
            plain_trainer(tmp_path, max_steps=6).fit(module, datamodule=data)
        states.append(module.state_dict())
        kept.append(len([file for file in (tmp_path / "cache").rglob("*") if "embed" in str(file) and file.is_file()]))
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=1e-6)
    assert kept[0] < kept[1] == kept[2]
