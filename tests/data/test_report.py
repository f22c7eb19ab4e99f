"""The accounts: exact sums, the published form, and what a reader of the table sees."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aplot_lightning.data.comparisons import KINDS
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.preview import Preview, Side
from aplot_lightning.data.report import DataReport

FORM = {"read", "used", "pairs", "refused", "near_leak", "cut", "longer_wins", "tokens"}
SIDE = Side("who ?", "the cat⟦<eos>⟧", 5)
HOSTILE = "a | b\n# no heading\n``` \x1b[31mred\x07 \u202eturned \ud800 🦊 שלום"


def filled(ledger, used=3, refused=("tie",)):
    ledger.read += used + len(refused)
    for place, kind in enumerate(refused):
        ledger.refuse(kind, f"{ledger.name}:{place + 10}", "why not")
    ledger.use(used, 1, range(1, used + 1))
    return ledger


def test_account_in_the_published_form():
    account = filled(SourceLedger("x.jsonl"), used=4, refused=("tie", "tie", "leak")).as_dict()
    assert set(account) == FORM
    assert tuple(account["refused"]) == KINDS
    assert account["refused"] == dict.fromkeys(KINDS, 0) | {"tie": 2, "leak": 1}
    assert (account["read"], account["used"], account["pairs"]) == (7, 4, 4)
    assert account["near_leak"] == 0
    assert account["cut"] == {"prompts": 0, "chosen": 0, "rejected": 0}
    assert account["longer_wins"] == 1 / 4
    assert account["tokens"] == {"p50": 2, "p95": 4, "max": 4}


def test_parts_of_a_source_add_up():
    ledger = SourceLedger("x.jsonl")
    ledger.read = 3
    ledger.use(2, 1, np.asarray([5, 9], dtype=np.int32))
    ledger.use(1, 1, [7])
    assert ledger.as_dict()["longer_wins"] == 2 / 3
    assert ledger.as_dict()["tokens"] == {"p50": 7, "p95": 9, "max": 9}


def test_pairs_count_and_not_comparisons():
    ledger = SourceLedger("x.jsonl")
    ledger.read = 1
    ledger.use(3, 1, [9])
    assert ledger.as_dict()["pairs"] == 3
    assert ledger.as_dict()["longer_wins"] == 1 / 3


def test_lengths_are_kept_once_as_they_came():
    """A million pairs cost 4 MB for the report and not 8 for each account that they are in."""
    lengths = np.arange(100, dtype=np.int32)
    ledger = SourceLedger("x.jsonl")
    ledger.read = 100
    ledger.use(100, 50, lengths)
    total = SourceLedger.total([ledger])
    assert np.shares_memory(ledger._lengths[0], lengths)
    assert np.shares_memory(total._lengths[0], lengths)
    assert total.as_dict() == ledger.as_dict()


def test_total_sums_cuts_and_near_leaks():
    ledgers = [filled(SourceLedger(name)) for name in ("a", "b")]
    for factor, ledger in enumerate(ledgers, start=1):
        ledger.near_leak, ledger.cut_prompts, ledger.cut_chosen, ledger.cut_rejected = (
            n * factor for n in (1, 2, 3, 4)
        )
    account = SourceLedger.total(ledgers).as_dict()
    assert account["near_leak"] == 3
    assert account["cut"] == {"prompts": 6, "chosen": 9, "rejected": 12}


def test_a_row_that_is_nowhere_is_noticed():
    ledger = filled(SourceLedger("x.jsonl"))
    ledger.read += 1
    with pytest.raises(AssertionError, match="5 rows read, 1 refused, 3 counted as used"):
        ledger.as_dict()


def test_an_unknown_kind_is_no_kind():
    with pytest.raises(KeyError):
        SourceLedger("x.jsonl").refuse("boring", "x.jsonl:1", "why not")


def test_the_first_ten_places_of_each_kind_are_kept():
    ledger = SourceLedger("x.jsonl")
    for line in range(1, 26):
        ledger.refuse("tie" if line % 2 else "leak", f"x.jsonl:{line}", "why not")
    assert [where for where, _ in ledger.locations["tie"]] == [f"x.jsonl:{line}" for line in range(1, 20, 2)]
    assert ledger.refused["tie"] == 13
    assert ledger.reasons() == "13 tie, 12 leak; first: x.jsonl:1: why not"


def test_report_form_and_totals():
    report = DataReport()
    filled(report.ledger(("train",), "a.jsonl"), used=3, refused=("tie", "not_json"))
    filled(report.ledger(("train",), "b.jsonl"), used=2, refused=("tie",))
    filled(report.ledger(("id",), "c.jsonl"))
    filled(report.ledger(("ood", "llmbar"), "d.jsonl"), refused=())
    filled(report.ledger(("ood_validation", "pandalm"), "e.jsonl"))
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert set(content) == {"train", "validation", "id", "ood", "ood_validation", "locations", "previews"}
    assert set(content["train"]) == {"total", "sources"}
    assert set(content["train"]["sources"]) == {"a.jsonl", "b.jsonl"}
    total = content["train"]["total"]
    assert (total["read"], total["used"], total["refused"]["tie"], total["refused"]["not_json"]) == (8, 5, 2, 1)
    assert total["tokens"] == {"p50": 2, "p95": 3, "max": 3}
    assert total["longer_wins"] == 2 / 5
    assert content["validation"] is None
    accounts = [total, *content["train"]["sources"].values(), content["id"], content["ood"]["llmbar"]]
    accounts.append(content["ood_validation"]["pandalm"])
    for account in accounts:
        assert set(account) == FORM
        assert account["read"] == account["used"] + sum(account["refused"].values())
    assert content["locations"]["ood/llmbar"] == {}
    assert [found["where"] for found in content["locations"]["train"]["tie"]] == ["a.jsonl:10", "b.jsonl:10"]


def test_a_report_without_rows_is_json():
    content = json.loads(json.dumps(DataReport().as_dict(), allow_nan=False))
    assert content["train"]["total"]["longer_wins"] is None
    assert content["train"]["total"]["tokens"] == {"p50": None, "p95": None, "max": None}


@pytest.mark.parametrize("place", [("ood",), ("test", "x"), ("id", "x"), ("validations",)])
def test_unknown_place(place):
    with pytest.raises(ValueError, match="no place"):
        DataReport().ledger(place, "x.jsonl")


def test_a_place_is_filled_once():
    report = DataReport()
    report.ledger(("id",), "a.jsonl")
    report.ledger(("train",), "a.jsonl")
    for place, name in [(("id",), "b.jsonl"), (("train",), "a.jsonl")]:
        with pytest.raises(ValueError, match="already"):
            report.ledger(place, name)


def test_text_shows_counts_and_first_places():
    report = DataReport()
    filled(report.ledger(("train",), "train.jsonl"), used=1200, refused=("tie", "tie", "leak"))
    filled(report.ledger(("ood", "llmbar"), "llmbar.jsonl"), refused=())
    header, train, tie, leak, ood = report.to_text().splitlines()
    assert header.split()[:5] == ["set", "source", "read", "used", "pairs"]
    assert train.split() == ["train", "train.jsonl", "1,203", "1,200", "1,200", "0.00", "600", "1,140", "1,200"]
    assert tie.strip() == "refused 2 tie: train.jsonl:10: why not; also train.jsonl:11"
    assert leak.strip() == "refused 1 leak: train.jsonl:12: why not"
    assert ood.split()[:2] == ["ood/llmbar", "llmbar.jsonl"]
    assert len(header) == len(train) == len(ood)


def hostile_report():
    """What data may hold, wherever it gets into the report: names of files, messages, texts."""
    report = DataReport()
    ledger = filled(report.ledger(("train",), "a|b.jsonl"), refused=())
    ledger.read += 12
    for line in range(12):
        ledger.refuse("missing_field", f"a|b.jsonl:{line}", HOSTILE.replace("\n", " "))
    ledger.near_leak, ledger.cut_prompts, ledger.cut_rejected = 2, 3, 1
    filled(report.ledger(("train",), "total"), refused=("tie",))
    report.previews = [Preview(SIDE, SIDE), Preview(Side(HOSTILE, HOSTILE, 9), Side("other", "no⟦?⟧", 7))]
    return report


def test_text_shows_cuts_near_leaks_sum_and_previews():
    lines = hostile_report().to_text().splitlines()
    assert sum(line.split()[:2] == ["train", "total"] for line in lines) == 2  # a source of that name, and the sum
    assert lines[-1] == "    no⟦?⟧"
    notes = [line.strip() for line in lines if line.startswith("  ")]
    assert sum(note.startswith("refused") for note in notes) == 2
    assert "cut to max_length: 3 prompts, 1 rejected response" in notes
    assert any(note.startswith("near leak: 2 used rows") for note in notes)
    assert notes.count("prompt:") == notes.count("prompt of the chosen:") == notes.count("prompt of the rejected:") == 1
    assert notes.count("who ?") == 1  # a common prompt is shown once


@pytest.mark.parametrize("render", [DataReport.to_text, DataReport.to_markdown])
def test_data_steers_no_terminal(render):
    text = render(hostile_report())
    assert "🦊 שלום" in text
    assert not {character for character in text if ord(character) < 32} - {"\n"}
    assert not set(text) & set("\x7f\x9b\u202e\ud800")
    assert "\\x1b[31mred" in text


def test_markdown_names_the_first_ten_rows_and_reads_no_data_as_markup():
    page = hostile_report().to_markdown()
    assert page.count("a|b.jsonl:") == 10
    assert "### `train`: 12 missing_field, the first 10" in page
    assert "### `train`: 1 tie\n" in page
    assert r"| train | a\|b.jsonl | 15 |" in page
    assert "- `train`: cut to max_length: 3 prompts, 1 rejected response" in page
    for line in page.splitlines():
        assert line.startswith("    ") or not any(word in line for word in ("no heading", "```", "31m"))
    assert "No row was refused" in DataReport().to_markdown()


def test_readers_see_training_first():
    report = DataReport()
    for place in (("ood", "far"), ("id",), ("train",)):
        filled(report.ledger(place, "x.jsonl"), refused=())
    assert [line.split()[0] for line in report.to_text().splitlines()] == ["set", "train", "id", "ood/far"]


def test_summary_is_one_line_a_set():
    first, second = hostile_report().summary()
    assert first == (
        "data train: 15 rows of a|b.jsonl, 3 used; refused 12 missing_field; "
        "cut to max_length: 3 prompts, 1 rejected response; near leak: 2 used rows"
    )
    assert second == "data train: 4 rows of total, 3 used; refused 1 tie"


def test_written_files_can_be_read_again(tmp_path):
    report = hostile_report()
    report.write(tmp_path)
    assert json.loads((tmp_path / "data_report.json").read_text(encoding="utf-8")) == report.as_dict()
    assert (tmp_path / "data_report.md").read_text(encoding="utf-8") == report.to_markdown()
