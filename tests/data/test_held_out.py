"""What is held out of the training prompts: shares that make sense, and streams that hold out what files do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aplot_lightning.data.comparisons import parse_comparison
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.held_out import HeldOut, check_names, evaluation_set
from aplot_lightning.data.preparation import Cache, Corpus
from aplot_lightning.data.sources import open_source
from aplot_lightning.errors import UserError
from aplot_lightning.model.locate import ASSETS
from aplot_lightning.model.tokenizer import load_tokenizer

ROWS = [{"prompt": f"question {number} ?", "chosen": f"yes {number}", "rejected": "no"} for number in range(200)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = load_tokenizer(str(ASSETS / "world-decoder"), "model", "world-decoder")
    encoder = ConversationEncoder(tokenizer, 64)
    return Corpus.prepared("data.train", [open_source(str(path), "data.train")], encoder, Cache(tmp_path / "cache"), 1)


def test_a_stream_holds_out_what_a_file_does(corpus: Corpus) -> None:
    held_out = HeldOut(0.2, 0.1)
    parts = held_out.parts(corpus)
    assert sorted(place for part in parts.values() for place in part.tolist()) == list(range(len(ROWS)))
    held = [number for number, row in enumerate(ROWS) if held_out.holds(parse_comparison(row, "rows:1", "rows"))]
    assert held == sorted([*parts["validation"].tolist(), *parts["id"].tolist()])
    assert 0 < len(parts["id"]) < len(parts["validation"]) < len(parts["train"])


def test_an_evaluation_set_holds_its_places_texts(corpus: Corpus) -> None:
    places = HeldOut(0.2, 0.0).parts(corpus)["validation"]
    made = evaluation_set("validation", corpus, places)
    assert made.name == "validation"
    assert [held.where for held in made.comparisons] == [f"rows.jsonl:{place + 1}" for place in places]
    assert made.encoded.kept.tolist() == list(range(len(places)))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((-0.1, 0.0), r"data\.validation_share is -0\.1"),
        ((0.0, 1.0), r"data\.id_share is 1\.0"),
        ((float("nan"), 0.0), r"data\.validation_share is nan"),
        ((0.5, 0.5), "leave nothing to train on"),
    ],
)
def test_shares_that_are_none(shares: tuple[float, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HeldOut(*shares)


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "validation", "id"])
def test_names_that_no_set_can_have(name: str) -> None:
    with pytest.raises(UserError, match=r"data\.ood: .* cannot name a set"):
        check_names({"data.ood": [name], "data.ood_validation": []})


def test_a_set_cannot_test_and_select() -> None:
    with pytest.raises(UserError, match=r"'far' is in data\.ood and in data\.ood_validation"):
        check_names({"data.ood": ["near", "far"], "data.ood_validation": ["far"]})
