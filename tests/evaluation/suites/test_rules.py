"""Each rule on small cases computed by hand, and against public facts of its suite."""

from __future__ import annotations

from math import tanh
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplot_lightning.evaluation.statistics import bootstrap_interval
from aplot_lightning.evaluation.suites import BY_PROMPT, RULES
from aplot_lightning.evaluation.suites.hhh import COUNTS as HHH_COUNTS
from aplot_lightning.evaluation.suites.judgebench import COUNTS as JUDGEBENCH_COUNTS
from aplot_lightning.evaluation.suites.llmbar import COUNTS as LLMBAR_COUNTS
from aplot_lightning.evaluation.suites.rewardbench import COUNTS, WEIGHTS
from aplot_lightning.evaluation.suites.rewardbench2 import COUNTS as COUNTS_2
from aplot_lightning.evaluation.suites.ties import ties

PAIRWISE = sorted(set(RULES) - BY_PROMPT)


def pair_table(outcomes: dict[str, list[float]], targets: dict[str, float] | None = None) -> dict[str, Any]:
    """Each subset's gaps as a table of pairs, each with a prompt of its own."""
    rows = [(subset, gap) for subset, gaps in outcomes.items() for gap in gaps]
    return {
        "id": [str(place) for place in range(len(rows))],
        "prompt": np.arange(len(rows)),
        "subset": [subset for subset, _ in rows],
        "chosen_reward": np.array([gap for _, gap in rows], dtype=float),
        "rejected_reward": np.zeros(len(rows)),
        "target": np.array([(targets or {}).get(subset, 1.0) for subset, _ in rows]),
    }


def right_of(right: int, count: int) -> list[float]:
    """Gaps of `count` pairs, of which the first are right."""
    return [1.0] * right + [-1.0] * (count - right)


def prompt_table(rows: list[tuple[str, str, list[float], int]]) -> dict[str, Any]:
    ids, subsets, rewards, correct = zip(*rows, strict=True)
    return {
        "id": list(ids),
        "prompt": np.arange(len(rows)),
        "subset": list(subsets),
        "rewards": list(rewards),
        "correct": list(correct),
    }


# All suites of pairs


@pytest.mark.parametrize("suite", PAIRWISE)
def test_a_tie_is_wrong(suite) -> None:
    parts = {"rewardbench": list(COUNTS), "llmbar": list(LLMBAR_COUNTS)}.get(suite, ["a"])
    ties_and_right = {part: [0.0, 0.0, 0.0, 1.0] for part in parts}
    assert RULES[suite](pair_table(ties_and_right)).results["accuracy"] == pytest.approx(0.25, abs=1e-15)


@pytest.mark.parametrize("suite", sorted(set(PAIRWISE) - {"rewardbench"}))
def test_accuracy_is_over_pairs_with_its_interval_over_prompts(suite) -> None:
    table = pair_table({"x": right_of(3, 4), "y": right_of(1, 6)})
    table["prompt"] = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
    results = RULES[suite](table).results
    assert list(results) == ["suite", "accuracy", "ci95", "subsets"]
    assert results["suite"] == suite
    assert results["accuracy"] == 0.4
    right = [1, 1, 1, 0, 1, 0, 0, 0, 0, 0]
    assert results["ci95"] == list(bootstrap_interval(right, table["prompt"]))
    assert results["subsets"]["x"]["accuracy"] == 0.75
    assert results["subsets"]["x"]["pairs"] == 4
    assert results["subsets"]["y"]["accuracy"] == pytest.approx(1 / 6)


def test_targets_turn_pairs_around_or_leave_them_out() -> None:
    table = pair_table({"": [1.0], "turned": [1.0, -1.0, -1.0], "even": [1.0] * 5}, {"turned": 0.2, "even": 0.5})
    results = RULES["pairs"](table).results
    assert results["accuracy"] == 0.75
    assert list(results["subsets"]) == ["turned"]  # rows without a subset are in none, even ones are left out


def test_one_prompt_has_no_interval() -> None:
    table = pair_table({"a": right_of(1, 2)})
    table["prompt"] = np.zeros(2, dtype=int)
    results = RULES["pairs"](table).results
    assert results["accuracy"] == 0.5
    assert results["ci95"] is None


# RewardBench


def test_public_counts() -> None:
    assert sum(COUNTS.values()) == 2985
    assert WEIGHTS["Safety"]["xstest-should-refuse"] == 154
    assert WEIGHTS["Safety"]["xstest-should-respond"] == 250
    assert COUNTS["math-prm"] == 447
    assert WEIGHTS["Reasoning"]["math-prm"] == 984 == 6 * WEIGHTS["Reasoning"]["hep-go"]
    sizes = {name: sum(COUNTS[subset] for subset in weights) for name, weights in WEIGHTS.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1431}  # the paper's table 1
    assert sum(COUNTS_2.values()) == 1865
    assert sum(HHH_COUNTS.values()) == 221
    assert sum(LLMBAR_COUNTS.values()) == 419
    assert sum(JUDGEBENCH_COUNTS.values()) == 350


def whole_rewardbench(**changed: int) -> dict[str, list[float]]:
    """Everything right but for `changed` subsets ("_" for "-"), which have so many right."""
    right = {name.replace("_", "-"): count for name, count in changed.items()}
    return {name: right_of(right.get(name, count), count) for name, count in COUNTS.items()}


def test_rewardbench_by_hand() -> None:
    outcomes = whole_rewardbench(xstest_should_refuse=0, math_prm=0, llmbar_natural=50, alpacaeval_easy=90)
    figures = RULES["rewardbench"](pair_table(outcomes))
    expected = {
        "Chat": (358 - 10) / 358,
        "Chat Hard": (456 - 50) / 456,
        "Safety": (740 - 154) / 740,
        "Reasoning": 0.5,  # all of math wrong, all of code right
    }
    assert {name: figures.columns[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert figures.columns["Prior Sets"] is None
    assert figures.results["accuracy"] == pytest.approx(sum(expected.values()) / 4, abs=1e-12)
    assert figures.results["subsets"]["xstest-should-refuse"]["accuracy"] == 0
    assert figures.results["subsets"]["Safety"]["accuracy"] == pytest.approx(expected["Safety"])
    assert figures.notes == []
    low, high = figures.results["ci95"]
    assert low < figures.results["accuracy"] < high


def test_prior_sets_count_by_half_and_only_all_together() -> None:
    outcomes = whole_rewardbench()
    prior = {"anthropic_helpful": right_of(1, 2), "anthropic_hhh": right_of(1, 4), "shp": [1.0], "summarize": [-1.0]}
    figures = RULES["rewardbench"](pair_table({**outcomes, **prior, "mtbench_human": [-1.0]}))
    mean = (0.5 + 0.25 + 1 + 0) / 4
    assert figures.columns["Prior Sets"] == pytest.approx(mean)
    assert figures.results["accuracy"] == pytest.approx((2 * 4 + mean) / 9)
    assert figures.results["subsets"]["mtbench_human"]["accuracy"] == 0
    assert "anthropic_helpful 2 of 6192" in figures.notes[0]
    figures = RULES["rewardbench"](pair_table({**outcomes, "shp": [1.0]}))
    assert figures.columns["Prior Sets"] is None
    assert figures.results["accuracy"] == 1
    assert "anthropic_helpful, anthropic_hhh, summarize" in figures.notes[0]


def test_a_section_is_over_the_subsets_that_are_there() -> None:
    outcomes = {"xstest-should-refuse": right_of(0, 3), "xstest-should-respond": right_of(2, 2)}
    figures = RULES["rewardbench"](pair_table(outcomes))
    assert figures.columns["Safety"] == pytest.approx(250 / 404)
    assert figures.columns["Chat"] is None
    assert figures.results["accuracy"] is None
    assert figures.results["ci95"] is None
    assert figures.results["subsets"]["hep-go"] is None
    assert figures.results["subsets"]["Chat"] is None
    missing, other = figures.notes
    assert "hep-go" in missing
    assert "xstest-should-refuse 3 of 154" in other


def test_the_interval_of_a_score_is_that_of_parts_drawn_apart() -> None:
    """The variance of a weighted mean of independent means: sum of squared weights times p (1 - p) / n."""
    outcomes = {name: right_of(count // 2, count) for name, count in COUNTS.items()}
    low, high = RULES["rewardbench"](pair_table(outcomes)).results["ci95"]
    variance = 0.0
    for weights in WEIGHTS.values():
        for name, weight in weights.items():
            share = (COUNTS[name] // 2) / COUNTS[name]
            variance += (weight / sum(weights.values()) / 4) ** 2 * share * (1 - share) / COUNTS[name]
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.08)


# RewardBench 2


def test_best_of_four_shares_the_credit_of_a_tie() -> None:
    rows = [
        ("1", "Math", [2.0, 1.0, 0.0, -1.0], 1),
        ("2", "Math", [1.0, 2.0, 0.0, 0.0], 1),
        ("3", "Math", [2.0, 2.0, 0.0, 0.0], 1),
        ("4", "Math", [2.0, 2.0, 2.0, 2.0], 1),
    ]
    results = RULES["rewardbench2"](prompt_table(rows)).results
    assert results["subsets"]["Math"]["accuracy"] == (1 + 0 + 1 / 2 + 1 / 4) / 4
    assert results["subsets"]["Math"]["prompts"] == 4
    assert results["subsets"]["Focus"] is None
    assert results["accuracy"] is None


def test_ties_by_hand() -> None:
    rows = [
        ("ref:0", np.array([5.0, 1.0]), 1),  # m = 4
        ("tied:0", np.array([3.0, 4.0, 1.0]), 2),  # m = 2, s = 1
        ("ref:1", np.array([1.0, 1.0]), 1),  # a tie between right and wrong: m = 0, wrong
        ("tied:1", np.array([3.0, 9.0, 1.0, 2.0]), 2),  # m = 1, s = 6
    ]
    far = (tanh(2 / 1 - 1) + tanh(0 / 6 - 1)) / 2
    score = ties(rows)
    assert score is not None
    assert score.value == pytest.approx(0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * far, abs=1e-12)


def test_ties_without_spread_without_partner_or_of_one_question() -> None:
    flat = [("ref:0", np.array([2.0, 1.0]), 1), ("tied:0", np.array([3.0, 3.0, 1.0]), 2)]  # s = 0: m > s, no ratio
    score = ties(flat)
    assert score is not None
    assert score.value == pytest.approx(1.0)
    assert score.resampled is None
    alone = ties([("tied:0", np.array([3.0, 2.0, 1.0]), 2)])
    assert alone is not None
    assert alone.value == pytest.approx(0.3)
    assert ties([]) is None


def test_a_perfect_model_has_almost_one_in_ties_and_one_elsewhere() -> None:
    rows = [
        (f"{kind}:{n}", "Ties", [9.0, 8.9, 0.0], 1 if kind == "ref" else 2) for n in (1, 2) for kind in ("ref", "tied")
    ]
    rows = [
        (name, subset, [9.0, 0.0, 0.0] if correct == 1 else rewards, correct) for name, subset, rewards, correct in rows
    ]
    rows += [(name, name, [1.0, 0.0, 0.0, 0.0], 1) for name in COUNTS_2 if name != "Ties"]
    figures = RULES["rewardbench2"](prompt_table(rows))
    assert figures.columns["Ties"] == pytest.approx(1.01)  # tanh of a large ratio: the rule's own ceiling
    assert figures.columns["Score"] == pytest.approx((5 + 1.01) / 6)


# RM-Bench


def test_the_matrix_of_styles_by_hand() -> None:
    # chosen: concise 2, plain 1, Markdown 3; rejected: concise 0, plain 2, Markdown 2
    # rows of right: concise [1, 0 (tie), 0 (tie)], plain [1, 0, 0], Markdown [1, 1, 1]
    rows = [("1", "chat", [2.0, 1.0, 3.0, 0.0, 2.0, 2.0], 3)]
    results = RULES["rm_bench"](prompt_table(rows)).results
    assert list(results) == ["easy", "normal", "hard", "mean", "domains"]
    expected = {"easy": 1.0, "normal": 2 / 3, "hard": 0.0}
    assert {level: results[level] for level in expected} == pytest.approx(expected)
    assert results["domains"]["chat"] == pytest.approx(expected)
    assert results["domains"]["code"] is None
    assert results["mean"] is None


def test_domains_weigh_the_same_and_safety_pools_its_two() -> None:
    right, wrong = [1.0] * 3 + [0.0] * 3, [0.0] * 6
    rows = [("", domain, right, 3) for domain in ("chat", "math", "math", "code", "safety-response", "safety-response")]
    rows += [("", "safety-refuse", wrong, 3), ("", "code", wrong, 3), ("", "code", wrong, 3)]
    figures = RULES["rm_bench"](prompt_table(rows))
    domains = figures.results["domains"]
    assert domains["safety"]["hard"] == pytest.approx(2 / 3)
    assert domains["safety-refuse"]["hard"] == 0
    assert domains["safety-response"]["hard"] == 1
    assert figures.results["mean"] == pytest.approx((1 + 1 + 1 / 3 + 2 / 3) / 4)
    assert figures.results["hard"] == pytest.approx(6 / 9)  # over all prompts
    assert figures.columns["Hard"] == pytest.approx(figures.results["mean"])  # over the domains
    assert figures.score is not None
    assert figures.score.value == figures.results["mean"]
    assert list(figures.columns) == ["Chat", "Math", "Code", "Safety", "Hard", "Normal", "Easy", "Avg"]
    assert figures.notes == []


@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=8))
def test_the_matrix_is_the_readmes_loop(rewards) -> None:
    results = RULES["rm_bench"](prompt_table([("", "chat", [float(r) for r in row], 3) for row in rewards])).results
    matrix = np.zeros((3, 3))
    for row in rewards:
        for i in range(3):
            for j in range(3):
                matrix[i][j] += row[i] > row[3 + j]
    matrix /= len(rewards)
    assert results["hard"] == pytest.approx((matrix[0][1] + matrix[0][2] + matrix[1][2]) / 3)
    assert results["easy"] == pytest.approx((matrix[1][0] + matrix[2][0] + matrix[2][1]) / 3)
    assert results["normal"] == pytest.approx(np.trace(matrix) / 3)


# LLMBar, HHH, JudgeBench, MT-Bench


@pytest.mark.parametrize(
    ("right", "adversarial", "average"),
    [((68, 24, 19, 28, 12), 31.1, 38.4), ((70, 51, 28, 24, 15), 38.0, 44.4)],  # the paper's two reward models, table 3
)
@pytest.mark.parametrize("before", ["", "LLMBar/"])
def test_llmbars_published_averages(right, adversarial, average, before) -> None:
    counts = zip(LLMBAR_COUNTS.items(), right, strict=True)
    figures = RULES["llmbar"](pair_table({before + name: right_of(own, count) for (name, count), own in counts}))
    assert round(100 * figures.columns["Adversarial"], 1) == adversarial
    assert round(100 * figures.columns["Average"], 1) == average
    assert figures.results["accuracy"] == sum(right) / 419
    assert list(figures.results["subsets"]) == [before + name for name in LLMBAR_COUNTS]
    assert figures.notes == []


def test_hhhs_two_averages() -> None:
    figures = RULES["hhh"](
        pair_table({"helpful": right_of(59, 59), "honest": right_of(0, 61), "other": right_of(43, 43)})
    )
    assert figures.columns["Mean of parts"] is None
    assert figures.results["subsets"]["harmless"] is None
    assert figures.notes == ["no rows of harmless: null"]
    whole = {
        "helpful": right_of(59, 59),
        "honest": right_of(0, 61),
        "harmless": right_of(29, 58),
        "other": right_of(43, 43),
    }
    figures = RULES["hhh"](pair_table(whole))
    assert figures.columns["Mean of parts"] == (1 + 0 + 0.5 + 1) / 4
    assert figures.columns["All pairs"] == (59 + 29 + 43) / 221


def test_judgebenchs_columns() -> None:
    figures = RULES["judgebench"](pair_table({"mmlu-pro": right_of(1, 4), "livecodebench": right_of(1, 1)}))
    assert figures.columns == {"Knowledge": 0.25, "Reasoning": None, "Math": None, "Coding": 1.0, "Overall": 0.4}
    assert figures.notes[0] == "no rows of livebench-reasoning, livebench-math: null"
    whole = {name: right_of(0, count) for name, count in JUDGEBENCH_COUNTS.items()}
    assert RULES["judgebench"](pair_table(whole)).notes == []
    claude = {**dict.fromkeys(JUDGEBENCH_COUNTS, right_of(0, 1)), "mmlu-pro": right_of(0, 267)}
    assert RULES["judgebench"](pair_table(claude)).notes == []  # the other file, of 270 pairs


def test_mt_benchs_turns() -> None:
    figures = RULES["mt_bench"](pair_table({"first turn": right_of(1, 4)}))
    assert figures.columns == {"First turn": 0.25, "Second turn": None, "All votes": 0.25}
    assert figures.notes == ["no rows of second turn: null"]


@pytest.mark.parametrize("suite", RULES)
def test_every_rule_says_its_rule_and_source(suite) -> None:
    text = RULES[suite].__doc__ or ""
    assert "Rule: " in text
    assert "Source: " in text
    assert " tie " in text or "shares the highest" in text
