from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from aplot_lightning.errors import UserError
from aplot_lightning.evaluation.report import read_run, write_run_report
from aplot_lightning.evaluation.report.run_page import describe_objective

MakeRun = Callable[..., Path]


def section(text: str, heading: str) -> str:
    return next(part for part in text.split("\n## ") if part.startswith(heading))


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without header and rule."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_a_report_has_every_part(make_run: MakeRun) -> None:
    run = make_run()
    path = write_run_report(run)
    assert path == run / "report.md"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Run aplot\n")
    head = dict(cells(text.split("\n## ")[0]))
    assert head["objective"] == "margin TransportMargin(epsilon=0.1, reading=conditional, reward_weight=0.9)"
    assert head["backbone"] == "world-decoder"
    assert head["command"] == "aplot fit --config conf/quickstart.yaml"
    assert head["time"] == "1 min 32 s"
    assert head["throughput"] == "103 pairs/s, 5,310 tokens/s"
    metrics = read_run(run).metrics
    rows = {row[0]: row[1:] for row in cells(section(text, "Accuracy"))}
    names = ["id", "harder_pairs", "new_topics", "reversed_cue", "OOD mean", "validation (selects)"]
    assert list(rows) == names
    entry = metrics["ood"]["reversed_cue"]
    low, high = entry["ci95"]
    assert rows["reversed_cue"][:4] == [
        "240",
        f"{entry['accuracy']:.3f}",
        f"[{low:.3f}, {high:.3f}]",
        f"{entry['hard_accuracy']:.3f}",
    ]
    assert rows["OOD mean"][1] == f"{metrics['ood_mean']['accuracy']:.3f}"
    subsets = {(row[0], row[1]): row[3] for row in cells(section(text, "Subsets"))}
    assert len(subsets) == 6
    assert subsets["harder_pairs", "part_1"] == f"{metrics['ood']['harder_pairs']['subsets']['part_1']['accuracy']:.3f}"
    assert not list(run.glob("*.part"))


def test_every_picture_is_there(make_run: MakeRun) -> None:
    run = make_run()
    text = write_run_report(run).read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures == ["plots/accuracy.png", "plots/learning_curve.png", "plots/margins.png"]
    for picture in pictures:
        image = imread(run / picture)
        assert min(image.shape[:2]) > 300
        assert np.unique(image.reshape(-1, image.shape[-1]), axis=0).shape[0] > 20  # something is drawn


def test_margins_are_told_of_the_later_half(make_run: MakeRun) -> None:
    text = section(write_run_report(make_run()).read_text(encoding="utf-8"), "Margin")
    assert "Steps 160 to 300" in text
    similarity = re.search(r"two responses (-?[\d.]+),", text)
    gap = re.search(r"with its gap (-?[\d.]+)\.", text)
    assert similarity is not None
    assert gap is not None
    assert float(similarity[1]) > 0.9
    assert abs(float(gap[1])) < 0.2


def test_worst_errors_are_twenty_and_safe(make_run: MakeRun) -> None:
    rows = cells(section(write_run_report(make_run()).read_text(encoding="utf-8"), "Worst errors"))
    assert [row[0] for row in rows] == [str(place) for place in range(1, 21)]
    assert {len(row) for row in rows} == {6}
    first = rows[0]
    assert first[1] == "reversed_cue / part_0 / pair-0"
    assert first[2] == "-4.000"
    assert first[3] == r"Which is it, a \| b? Say \`why\`."
    assert first[4].startswith(r"\*0\* word word")
    assert "…" in first[4]
    assert len(first[4]) < 210
    assert first[5].startswith("&lt;b&gt;no&lt;/b&gt;")


def test_a_run_without_accuracies_margins_and_events(make_run: MakeRun) -> None:
    run = make_run("bare", bare=True)
    text = write_run_report(run).read_text(encoding="utf-8")
    assert "was not evaluated" in section(text, "Accuracy")
    assert cells(section(text, "Accuracy"))[0][:4] == ["id", "0", "-", "-"]
    assert "no TensorBoard events" in section(text, "Learning curve")
    assert "no margins" in section(text, "Margin")
    assert "No errors" in section(text, "Worst errors")
    assert "![" not in text
    assert "Bradley-Terry" in text
    assert "Subsets" not in text


def test_a_report_can_be_written_again(make_run: MakeRun) -> None:
    run = make_run()
    first = write_run_report(run).read_text(encoding="utf-8")
    assert write_run_report(run).read_text(encoding="utf-8") == first


def test_training_figures_may_be_null(make_run: MakeRun) -> None:
    run = make_run(bare=True)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["train"] = {"steps": 1, "pairs": 32, "seconds": 0.0, "pairs_per_second": None, "tokens_per_second": None}
    (run / "metrics.json").write_text(json.dumps(metrics))
    head = dict(cells(write_run_report(run).read_text().split("\n## ")[0]))
    assert head["training"] == "1 steps, 32 pairs"
    assert head["throughput"] == "- pairs/s, - tokens/s"


def test_no_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        write_run_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (None, "Bradley-Terry (no margin)"),
        ({"class_path": "aplot_lightning.objectives.Objective"}, "Bradley-Terry (no margin)"),
        (
            {
                "class_path": "a.Objective",
                "init_args": {
                    "link": {"class_path": "a.Logistic"},
                    "margin": {"class_path": "a.b.ConstantMargin", "init_args": {"value": 0.2}},
                },
            },
            "link Logistic(), margin ConstantMargin(value=0.2)",
        ),
    ],
)
def test_objectives_in_one_line(node: Any, expected: str) -> None:
    assert describe_objective(node) == expected
