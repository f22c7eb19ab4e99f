"""The accounts: exact sums, the published form, and what a reader of the table sees."""

from __future__ import annotations

import json

import pytest

from aplot_lightning.data.comparisons import KINDS, parse_comparison
from aplot_lightning.data.report import DataReport, SourceLedger

FORM = {"read", "used", "pairs", "refused", "near_leak", "longer_wins", "tokens"}


def comparison(chosen, rejected):
    return parse_comparison({"prompt": "q", "chosen": chosen, "rejected": rejected}, "x.jsonl:1", "x.jsonl")


def filled(ledger, used=3, refused=("tie",)):
    ledger.read += used + len(refused)
    for place, kind in enumerate(refused):
        ledger.refuse(kind, f"{ledger.name}:{place + 10}", "why not")
    ledger.use([comparison("longer", "short")] + [comparison("a", "bc")] * (used - 1), range(1, used + 1))
    return ledger


def test_account_in_the_published_form():
    account = filled(SourceLedger("x.jsonl"), used=4, refused=("tie", "tie", "leak")).as_dict()
    assert set(account) == FORM
    assert tuple(account["refused"]) == KINDS
    assert account["refused"] == dict.fromkeys(KINDS, 0) | {"tie": 2, "leak": 1}
    assert (account["read"], account["used"], account["pairs"]) == (7, 4, 4)
    assert account["near_leak"] is None
    assert account["longer_wins"] == 1 / 4
    assert account["tokens"] == {"p50": 2, "p95": 4, "max": 4}


def test_parts_of_a_source_add_up():
    ledger = SourceLedger("x.jsonl")
    ledger.read = 3
    ledger.use([comparison("aa", "b"), comparison("c", "dd")], [5, 9])
    ledger.use([comparison("ee", "f")], [7])
    assert ledger.as_dict()["longer_wins"] == 2 / 3
    assert ledger.as_dict()["tokens"] == {"p50": 7, "p95": 9, "max": 9}


def test_every_pair_of_a_comparison_counts():
    row = {"prompt": "q", "responses": ["a", "bbb", "cc"], "scores": [3, 2, 1]}
    ledger = SourceLedger("x.jsonl")
    ledger.read = 1
    ledger.use([parse_comparison(row, "x.jsonl:1", "x.jsonl")], [9])
    assert ledger.as_dict()["pairs"] == 3
    assert ledger.as_dict()["longer_wins"] == 1 / 3


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
    assert set(content) == {"train", "validation", "id", "ood", "ood_validation", "locations"}
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
