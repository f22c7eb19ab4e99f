"""Rows of public data sets, in their published layouts, read from files as a config names them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aplot_lightning.data.comparisons import Comparison
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.sources import open_source
from tests.reading import read_comparisons

LAYOUTS = Path(__file__).parent / "layouts"
SKY = ("What color is the sky?", "It is blue.", "It is green.")
SEA = ("Wie heißt das Meer bei Haifa? 🌊", "Das Mittelmeer, הים התיכון.", "Die Ostsee.")
UNSURE = "I do not know."
# what a config says of a layout beside its path; where there is nothing it reads as it is
OPTIONS: dict[str, dict[str, Any]] = {
    "argilla_cleaned": {"columns": {"chosen_score": "chosen-rating", "rejected_score": "rejected-rating"}},
    "argilla_dpo_mix": {
        "columns": {"chosen_score": "chosen_rating", "rejected_score": "rejected_rating", "source": "dataset"}
    },
    "nectar": {"columns": {"responses": "answers.answer", "ranks": "answers.rank", "source": None}},
    "other_names": {
        "columns": {
            "prompt": "question",
            "chosen": "output.best",
            "rejected": "output.worst",
            "margin": "strength",
            "source": "meta.origin",
        }
    },
    "ultrafeedback": {
        "columns": {
            "prompt": "instruction",
            "responses": "completions.response",
            "scores": "completions.fine-grained_score",
        }
    },
}
SCORES = {
    **dict.fromkeys(("ultrafeedback_binarized_h4", "ultrafeedback_binarized_trl"), (8.5, 6.0)),
    "argilla_cleaned": (5.0, 3.75),
    "argilla_dpo_mix": (5.0, 4.0),
    "rlhflow": (4.5, 3.0),
    "all_columns": (4.0, 2.5),
    "ultrafeedback": (2.5, 4.75, 3.25),
    "scored_responses": (1.0, 3.5, 2.0),
}
SOURCES = {
    "argilla_cleaned": "sharegpt",
    "argilla_dpo_mix": "argilla/distilabel-capybara-dpo-7k-binarized",
    "skywork": "magpie_ultra",
    "all_columns": "people",
    "other_names": "forum",
    "ultrafeedback": "evol_instruct",
}
GREETING = [("user", "Hi"), ("assistant", "Hello! What would you like to know?")]
BEFORE = {"hh_rlhf_turns": GREETING, "argilla_dpo_mix": [("system", "Be brief.")]}
ORDERED = {"ultrafeedback", "nectar", "scored_responses", "ranked_responses"}


def flat(conversation: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation]


def read(path: Path, layout: str) -> list[Comparison]:
    source = open_source({"path": str(path), **OPTIONS.get(layout, {})}, "data.train")
    ledger = SourceLedger(source.name)
    comparisons = read_comparisons(source, key="data.train", ledger=ledger, on_bad_row="error")
    assert ledger.read == len(comparisons) == 2
    return comparisons


def texts(comparison: Comparison) -> list[str]:
    assert all(flat(response)[0][0] == "assistant" and len(response) == 1 for response in comparison.responses)
    return [response[0]["content"] for response in comparison.responses]


@pytest.mark.parametrize("layout", sorted(path.stem for path in LAYOUTS.glob("*.jsonl")))
def test_a_public_layout_reads_as_it_is_published(layout: str) -> None:
    for (prompt, chosen, rejected), comparison in zip(
        (SKY, SEA), read(LAYOUTS / f"{layout}.jsonl", layout), strict=True
    ):
        if layout == "different_prompts":
            assert comparison.prompt == ()
            assert [flat(response) for response in comparison.responses] == [
                [("user", prompt), ("assistant", chosen)],
                [("user", f"{prompt} Answer at once."), ("assistant", rejected)],
            ]
            continue
        if layout == "trl_standard_implicit":
            assert comparison.prompt == ()
            assert texts(comparison) == [f"{prompt} {chosen}", f"{prompt} {rejected}"]
        else:
            assert flat(comparison.prompt) == [*BEFORE.get(layout, []), ("user", prompt)]
            answers = texts(comparison)
            pairs = {(answers[winner], answers[loser]) for winner, loser in comparison.pairs}
            third = {(chosen, UNSURE), (UNSURE, rejected)} if layout in ORDERED else set()
            assert pairs == {(chosen, rejected), *third}
            assert len(comparison.pairs) == len(pairs)
        assert comparison.scores == SCORES.get(layout)
        assert comparison.source == SOURCES.get(layout, f"{layout}.jsonl")


def test_every_column_of_ours_is_taken() -> None:
    for place, comparison in enumerate(read(LAYOUTS / "all_columns.jsonl", "all_columns")):
        assert (comparison.id, comparison.subset) == (f"row-{place}", "nature")
        assert (comparison.margin, comparison.target) == (1.5, 0.9)
    assert [comparison.margin for comparison in read(LAYOUTS / "other_names.jsonl", "other_names")] == [2.0, 2.0]


@pytest.mark.parametrize("layout", sorted(path.stem for path in LAYOUTS.glob("*.jsonl")))
@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet", "arrow", "feather"])
def test_a_layout_is_the_same_in_every_kind_of_file(layout: str, ending: str, tmp_path: Path) -> None:
    original = LAYOUTS / f"{layout}.jsonl"
    path = tmp_path / f"{layout}.{ending}"
    table = pa.Table.from_pylist([json.loads(line) for line in original.read_text(encoding="utf-8").splitlines()])
    if ending == "jsonl.gz":
        path.write_bytes(gzip.compress(original.read_bytes()))
    elif ending == "parquet":
        pq.write_table(table, path)
    else:
        make = pa.ipc.new_stream if ending == "arrow" else pa.ipc.new_file
        with make(str(path), table.schema) as writer:
            writer.write_table(table)

    def facts(comparison: Comparison) -> tuple[Any, ...]:
        return (comparison.prompt, comparison.responses, comparison.pairs, comparison.scores, comparison.margin)

    assert list(map(facts, read(path, layout))) == list(map(facts, read(original, layout)))
    assert [comparison.where for comparison in read(path, layout)] == [f"{path.name}:1", f"{path.name}:2"]
