"""The suites' public raw forms, by hand as their repositories and data cards show them, become rows of ours."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aplot_lightning.data.comparisons import RowError, parse_comparison
from aplot_lightning.data.sources import Source, open_source
from aplot_lightning.data.suites import LAYOUTS, SUITES, Suite
from aplot_lightning.errors import UserError

USER = [{"role": "user", "content": "Why?"}]
CONVERSATION = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Really?"},
    {"role": "assistant", "content": "Yes."},
]
OTHER = [CONVERSATION[0], {"role": "assistant", "content": "No idea."}, *CONVERSATION[2:3], CONVERSATION[1]]
REWARDBENCH = {
    "prompt": "Why?",
    "chosen": "So.",
    "chosen_model": "gpt-4",
    "rejected": "No.",
    "rejected_model": "alpaca",
    "subset": "xstest-should-refuse",
    "id": 7,
}
REWARDBENCH_2 = {
    "id": "12",
    "prompt": "Why?",
    "chosen": ["So."],
    "rejected": ["a", "b", "c"],
    "num_correct": 1,
    "num_incorrect": 3,
    "total_completions": 4,
    "models": ["x"] * 4,
    "subset": "Factuality",
    "additional_metadata": {"category": None},
}
RM_BENCH = {"id": "9", "prompt": "Why?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}
JUDGEBENCH = {
    "pair_id": "p1",
    "original_id": 3,
    "source": "mmlu-pro-law",
    "question": "Why?",
    "response_model": "gpt-4o-2024-05-13",
    "response_A": "first",
    "response_B": "second",
    "label": "B>A",
}
HHH = {"input": "Why?", "target_scores": {"worse": 0, "better": 1}}
MT_BENCH = {
    "question_id": 81,
    "model_a": "gpt-4",
    "model_b": "llama-13b",
    "winner": "model_b",
    "judge": "expert_1",
    "conversation_a": CONVERSATION,
    "conversation_b": OTHER,
    "turn": 1,
}
LLMBAR = {"input": "Why?", "output_1": "first", "output_2": "second", "label": 2}
RAW = {
    "rewardbench": REWARDBENCH,
    "rewardbench2": REWARDBENCH_2,
    "rm_bench": RM_BENCH,
    "judgebench": JUDGEBENCH,
    "hhh": HHH,
    "mt_bench": MT_BENCH,
    "llmbar": LLMBAR,
}


def write(path: Path, content: Any) -> Path:
    """JSON lines for a list under a name of that kind, else one JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ".jsonl" in path.name
    text = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content, indent=1)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(suite: str, path: Path) -> list[Any]:
    return [row for _, row in Suite(suite, str(path)).rows()]


def only(suite: str, tmp_path: Path, row: dict[str, Any]) -> Any:
    (found,) = read(suite, write(tmp_path / "rows.jsonl", [row]))
    return found


def refused(suite: str, tmp_path: Path, row: Any) -> str:
    found = only(suite, tmp_path, row)
    assert isinstance(found, RowError)
    assert found.kind == "missing_field"
    return str(found)


def test_every_suite_has_a_layout_or_is_pairs() -> None:
    assert set(SUITES) == {*LAYOUTS, "pairs"}
    assert SUITES == ("rewardbench", "rewardbench2", "rm_bench", "judgebench", "hhh", "mt_bench", "llmbar", "pairs")


def test_rewardbench(tmp_path) -> None:
    ours = {"prompt": USER, "chosen": "So.", "rejected": "No.", "subset": "xstest-should-refuse", "id": "7"}
    assert only("rewardbench", tmp_path, REWARDBENCH) == ours


def test_text_that_looks_like_a_transcript_stays_text(tmp_path) -> None:
    prompt = "\n\nHuman: a\n\nAssistant: b"
    row = only("rewardbench", tmp_path, {**REWARDBENCH, "prompt": prompt})
    assert parse_comparison(row, "here", "x").prompt == ({"role": "user", "content": prompt},)


def test_rewardbenchs_folder_is_read_by_its_filtered_split_and_prior_sets_by_their_names(tmp_path) -> None:
    def shard(name: str, *rows: dict[str, Any]) -> None:
        pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / name)

    shard("filtered-00000-of-00001.parquet", REWARDBENCH)
    shard("raw-00000-of-00001.parquet", {**REWARDBENCH, "prompt": "not this one"})
    prior = {"prompt": CONVERSATION[:3], "chosen": "So.", "rejected": "No.", "subset": "something of theirs", "id": 1}
    shard("anthropic_helpful-00000-of-00001.parquet", prior)
    shard("pku_better-00000-of-00001.parquet", prior)
    rows = read("rewardbench", tmp_path)
    assert [row["subset"] for row in rows] == ["anthropic_helpful", "xstest-should-refuse"]
    assert rows[0]["prompt"] == CONVERSATION[:3]


def test_rewardbench_2_and_its_ties(tmp_path) -> None:
    row = only("rewardbench2", tmp_path, REWARDBENCH_2)
    assert row["responses"] == ["So.", "a", "b", "c"]
    assert row["scores"] == [1, 0, 0, 0]
    assert (row["id"], row["subset"]) == ("12", "Factuality")
    tied = {**REWARDBENCH_2, "id": "tied:3", "chosen": ["x", "y"], "num_correct": 2, "subset": "Ties"}
    row = only("rewardbench2", tmp_path, tied)
    assert parse_comparison(row, "here", "x").pairs == tuple((one, other) for one in (0, 1) for other in (2, 3, 4))
    assert "ref:NUMBER" in refused("rewardbench2", tmp_path, {**tied, "id": "3"})
    assert "1 is meant" in refused("rewardbench2", tmp_path, {**REWARDBENCH_2, "chosen": ["x", "y"]})
    assert "no part" in refused("rewardbench2", tmp_path, {**REWARDBENCH_2, "subset": "Chat"})


def test_rm_bench_is_one_list_of_prompts(tmp_path) -> None:
    path = write(tmp_path / "data" / "total_dataset.json", [RM_BENCH, {**RM_BENCH, "domain": "safety-refuse"}])
    write(tmp_path / "data" / "chat_filtered.json", [RM_BENCH])
    for given in (path, tmp_path):
        rows = read("rm_bench", given)
        assert [row["subset"] for row in rows] == ["chat", "safety-refuse"]
    assert rows[0]["responses"] == list("abcdef")
    assert len(parse_comparison(rows[0], "here", "x").pairs) == 9
    assert "3 are meant" in refused("rm_bench", tmp_path, {**RM_BENCH, "chosen": ["a", "b"]})
    assert "no part" in refused("rm_bench", tmp_path, {**RM_BENCH, "domain": "poetry"})


def test_judgebench_goes_by_its_label(tmp_path) -> None:
    ours = {"prompt": USER, "chosen": "second", "rejected": "first", "subset": "mmlu-pro", "id": "p1"}
    assert only("judgebench", tmp_path, JUDGEBENCH) == ours
    assert only("judgebench", tmp_path, {**JUDGEBENCH, "label": "A>B"})["chosen"] == "first"
    assert "A>B or B>A" in refused("judgebench", tmp_path, {**JUDGEBENCH, "label": "A=B"})
    assert "no part" in refused("judgebench", tmp_path, {**JUDGEBENCH, "source": "gsm8k"})


def test_hhh_as_big_bench_and_as_the_hub_have_it(tmp_path) -> None:
    for part in ("harmless", "honest"):
        write(tmp_path / "hhh_alignment" / part / "task.json", {"name": "hhh", "examples": [HHH], "canary": "x"})
        write(tmp_path / "hhh_alignment" / part / "results.json", {"scores": [1]})
    rows = read("hhh", tmp_path)
    ours = {"prompt": USER, "chosen": "better", "rejected": "worse"}
    assert rows == [{**ours, "subset": "harmless"}, {**ours, "subset": "honest"}]
    (row,) = read("hhh", tmp_path / "hhh_alignment" / "honest" / "task.json")
    assert row["subset"] == "honest"
    hub = {"input": "Why?", "targets": {"choices": ["better", "worse"], "labels": [1, 0]}}
    assert only("hhh", tmp_path, hub) == {**ours, "subset": ""}
    assert "not answers" in refused("hhh", tmp_path, {"input": "Why?", "targets": ["better", "worse"]})
    assert "one better" in refused("hhh", tmp_path, {"input": "Why?", "target_scores": {"a": 1, "b": 1}})


def test_hhh_conversations_of_several_turns(tmp_path) -> None:
    row = only("hhh", tmp_path, {**HHH, "input": "Why?\n\nAssistant: Because.\n\nHuman: Really?"})
    assert parse_comparison(row, "here", "x").prompt == tuple(CONVERSATION[:3])


def test_mt_bench_is_cut_after_the_turn_and_ties_are_left_out(tmp_path) -> None:
    votes = [MT_BENCH, {**MT_BENCH, "turn": 2, "winner": "model_a"}]
    ties = [{**MT_BENCH, "winner": winner} for winner in ("tie", "tie (inconsistent)")]
    first, second = read("mt_bench", write(tmp_path / "votes.jsonl", [ties[0], *votes, ties[1]]))
    assert (first["chosen"], first["rejected"], first["subset"]) == (OTHER[:2], CONVERSATION[:2], "first turn")
    assert (second["chosen"], second["rejected"], second["subset"]) == (CONVERSATION, OTHER, "second turn")
    assert parse_comparison(first, "here", "x").prompt == tuple(USER)
    assert first["id"] != second["id"]
    assert "winner" in refused("mt_bench", tmp_path, {**MT_BENCH, "winner": "gpt-4"})
    assert "turn" in refused("mt_bench", tmp_path, {**MT_BENCH, "turn": 3})
    assert "4 messages" in refused("mt_bench", tmp_path, {**MT_BENCH, "turn": 2, "conversation_a": CONVERSATION[:2]})


def test_llmbars_folders_are_its_parts(tmp_path) -> None:
    for part in ("Natural", "Adversarial/GPTOut"):
        folder = tmp_path / "Dataset" / "LLMBar" / part
        write(folder / "dataset.json", [LLMBAR])
        write(folder / "evaluators" / "GPT-4" / "CoT" / "result.json", [{"winner": 1}])
    rows = read("llmbar", tmp_path)
    ours = {"prompt": USER, "chosen": "second", "rejected": "first"}
    assert rows == [{**ours, "subset": "Adversarial/GPTOut"}, {**ours, "subset": "Natural"}]
    assert only("llmbar", tmp_path, {**LLMBAR, "label": 1, "subset": "Natural"})["chosen"] == "first"
    assert "1 or 2" in refused("llmbar", tmp_path, {**LLMBAR, "label": 0})


@pytest.mark.parametrize(
    ("suite", "subset"),
    [
        ("rewardbench", "hep-go"),
        ("judgebench", "livecodebench"),
        ("hhh", "other"),
        ("mt_bench", "first turn"),
        ("llmbar", "LLMBar/Adversarial/GPTInst"),
        ("pairs", "anything"),
    ],
)
def test_pairs_in_our_own_layout(tmp_path, suite, subset) -> None:
    row = {"prompt": USER, "chosen": CONVERSATION[1:2], "rejected": "No.", "subset": subset, "id": "a"}
    assert only(suite, tmp_path, row) == row
    assert only(suite, tmp_path, {**row, "rejected": [], "chosen": "b"})  # judged by whoever parses it


@pytest.mark.parametrize("suite", RAW)
@pytest.mark.parametrize("other", RAW)
def test_another_suites_row_is_refused_and_named(tmp_path, suite, other) -> None:
    row = only(suite, tmp_path, RAW[other])
    if suite == other:
        assert isinstance(row, dict)
    else:
        assert isinstance(row, RowError)
        assert f"looks like {other}" in str(row) or "no part of" in str(row)


@pytest.mark.parametrize("suite", sorted(set(RAW) - {"rm_bench", "rewardbench2"}))
def test_a_subset_of_another_suite_is_refused(tmp_path, suite) -> None:
    row = {"prompt": "Why?", "chosen": "a", "rejected": "b", "subset": "poetry"}
    assert "'poetry' is no part of" in refused(suite, tmp_path, row)


@pytest.mark.parametrize("suite", RAW)
def test_a_missing_field_is_named(tmp_path, suite) -> None:
    for field in LAYOUTS[suite].fields:
        name = field.split(" ")[0]
        if suite == "mt_bench" and name == "turn":
            continue
        problem = refused(suite, tmp_path, {key: value for key, value in RAW[suite].items() if key != name})
        assert name in problem or "targets" in problem or "target_scores" in problem


@pytest.mark.parametrize("row", [3, "text", None, ["a"]])
def test_rows_that_are_no_objects(tmp_path, row) -> None:
    (found,) = read("rm_bench", write(tmp_path / "rows.json", [row]))
    assert isinstance(found, RowError)
    assert found.kind == "not_json"


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_lists_compressed_or_not(tmp_path, name) -> None:
    assert len(read("rm_bench", write(tmp_path / name, [RM_BENCH, RM_BENCH]))) == 2


def test_a_json_file_of_lines(tmp_path) -> None:
    path = tmp_path / "filtered.json"
    path.write_text("".join(json.dumps(REWARDBENCH) + "\n" for _ in range(3)))
    assert len(read("rewardbench", path)) == 3


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_a_list_that_breaks_off(tmp_path, name) -> None:
    path = write(tmp_path / name, [RM_BENCH] * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        read("rm_bench", path)


def test_lines_that_break_off(tmp_path) -> None:
    path = write(tmp_path / "rows.jsonl", [JUDGEBENCH] * 3)
    path.write_bytes(path.read_bytes()[:-20])
    *whole, last = read("judgebench", path)
    assert len(whole) == 2
    assert isinstance(last, RowError)
    assert last.kind == "not_json"


@pytest.mark.parametrize("content", ["{\n}", "[]", '{"examples": 3}'])
def test_a_document_without_rows(tmp_path, content) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(UserError, match="no list of rows"):
        read("hhh", tmp_path / "task.json")


def test_wrong_names(tmp_path) -> None:
    with pytest.raises(UserError, match="there is no suite 'reward-bench': the suites are rewardbench, "):
        Suite("reward-bench", str(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        Suite("hhh", str(tmp_path / "nothing.jsonl"))
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(UserError, match="without any file of rows"):
        Suite("hhh", str(tmp_path))


def test_the_hub_is_asked_for_the_splits_that_count() -> None:
    (part,) = Suite("rewardbench", "allenai/reward-bench").parts
    assert part[0].name == "allenai/reward-bench:filtered"
    parts = Suite("hhh", "HuggingFaceH4/hhh_alignment").parts
    assert [(source.config, source.split, places) for source, places in parts] == [  # type: ignore[attr-defined]
        (name, "test", (name,)) for name in ("helpful", "honest", "harmless", "other")
    ]
    (part,) = Suite("judgebench", "ScalerLab/JudgeBench:claude").parts
    assert part[0].name == "ScalerLab/JudgeBench:claude"


def test_a_config_names_a_suite(tmp_path) -> None:
    path = write(tmp_path / "llmbar.jsonl", [LLMBAR])
    source = open_source({"suite": "llmbar", "path": str(path)}, "data.ood.llmbar")
    assert isinstance(source, Source)
    assert [row["chosen"] for _, row in source.rows()] == ["second"]
    assert open_source({"suite": "llmbar", "name": "some/llmbar"}, "data.ood.llmbar").parts  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"^data\.ood\.x: there is no suite 'x'"):
        open_source({"suite": "x", "path": str(path)}, "data.ood.x")
    with pytest.raises(UserError, match="either `path`"):
        open_source({"suite": "hhh"}, "data.ood.x")
    with pytest.raises(UserError, match="leave out"):
        open_source({"suite": "hhh", "path": str(path), "split": "test"}, "data.ood.x")


def test_fingerprints_tell_suites_contents_and_places_apart(tmp_path) -> None:
    same = [write(tmp_path / name / "llmbar.jsonl", [LLMBAR]) for name in ("Natural", "Manual")]
    other = write(tmp_path / "third" / "llmbar.jsonl", [LLMBAR, LLMBAR])
    found = [Suite("llmbar", str(path)).fingerprint() for path in (*same, other)]
    found.append(Suite("pairs", str(same[0])).fingerprint())
    assert len(set(found)) == 4
    assert Suite("llmbar", str(same[0])).fingerprint() == found[0]
