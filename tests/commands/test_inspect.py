"""inspect by the real command line: what it prints is what a fit of the same words writes, and it leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# imported before any test captures stderr, so that Lightning's log handler keeps one that stays open
import aplot_lightning.training.cli  # noqa: F401
from aplot_lightning.cli import main
from aplot_lightning.model.reward_model import RewardModel

ROOT = Path(__file__).parents[2]
PAIR = {"prompt": "who ?", "chosen": "the cat", "rejected": "no"}
DIRTY = [
    *({**PAIR, "prompt": f"who is {n} ?"} for n in range(40)),
    "{not json",
    {"prompt": "who ?", "chosen": "the cat"},
    {**PAIR, "chosen": " "},
    {**PAIR, "chosen": "no"},
    {"prompt": "who ?", "responses": ["a", "b"], "scores": [1, 1]},
    {**PAIR, "prompt": "who is 3 ?"},
]
REFUSED = {"not_json", "missing_field", "empty_response", "identical_responses", "tie", "duplicate"}


@pytest.fixture
def inspect(laboratory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs inspect in an empty folder with options over the laboratory's config, and returns the exit code."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(**options: Any) -> int:
        words = laboratory.arguments("inspect", tmp_path / "here" / "run", options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["aplot", *words])
            return main()

    return call


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's own, hidden from users


def printed_table(capfd: pytest.CaptureFixture[str]) -> tuple[list[list[str]], str]:
    out = capfd.readouterr().out
    assert out.startswith("set ")
    return [line.split() for line in out.split("\n\n")[0].splitlines()], out


def only_line(capfd: pytest.CaptureFixture[str]) -> str:
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = (line for line in printed.err.splitlines() if not line.startswith(("Seed set", "INFO: Seed set")))
    assert line.startswith("aplot: ")
    return line


def test_it_prints_what_a_fit_writes_and_leaves_nothing(
    inspect: Any, laboratory: Any, finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert inspect(**laboratory.whole) == 0
    table, out = printed_table(capfd)
    assert [row[:5] for row in table[1:3]] == [
        ["train", "train.jsonl", "331", "331", "331"],
        [
            "validation",
            "train.jsonl",
            *[str(json.loads((finished_run / "data_report.json").read_text())["validation"]["pairs"])] * 3,
        ],
    ]
    assert {row[0] for row in table[1:]} == {
        "train",
        "validation",
        "id",
        "ood/hard",
        "ood/style",
        "ood_validation/topics",
    }
    assert out.count("⟦<|end|>⟧") == 6
    assert list((tmp_path / "here").iterdir()) == []


def test_output_is_the_report_of_the_run(inspect: Any, laboratory: Any, finished_run: Path, tmp_path: Path) -> None:
    assert inspect(**laboratory.whole, output=str(tmp_path / "new" / "report")) == 0
    for name in ("data_report.json", "data_report.md"):
        assert (tmp_path / "new" / "report" / name).read_bytes() == (finished_run / name).read_bytes()
    assert [path.name for path in (tmp_path / "here").iterdir()] == []


def test_a_run_can_be_the_backbone_and_its_config_the_config(
    inspect: Any, finished_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert inspect(config=str(finished_run / "config.yaml"), **{"model.backbone": str(finished_run)}) == 0
    table, _ = printed_table(capfd)
    assert table[1][:3] == ["train", "train.jsonl", "331"]
    assert inspect(**{"model.backbone": "nobody/there.ckpt", "init_from": str(finished_run)}) == 0  # as fit has it


def test_no_model_is_built(inspect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("inspect built a model")

    monkeypatch.setattr(RewardModel, "from_backbone", fail)
    assert inspect() == 0


def test_the_quickstart(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "inspect",
        "--config",
        str(ROOT / "conf/quickstart.yaml"),
        "--config",
        str(ROOT / "conf/objective/bt.yaml"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aplot", *words, "--data.train.init_args.pairs", "300", "--data.ood", "{}"])
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert main() == 0
    table, _ = printed_table(capfd)
    assert table[1][:3] == ["train", "world", "300"]


def test_a_dirty_file(inspect: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dirty.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in DIRTY))
    options = {"data.train": str(path), "data.ood": "{}", "data.validation_share": 0.3}
    assert inspect(**options, output=str(tmp_path / "report")) == 0
    table, out = printed_table(capfd)
    assert table[1][:5] == ["train", "dirty.jsonl", "46", "40", "40"]
    account = json.loads((tmp_path / "report" / "data_report.json").read_text())["train"]["total"]
    assert {kind for kind, count in account["refused"].items() if count} == REFUSED
    page = (tmp_path / "report" / "data_report.md").read_text()
    for line, kind in zip(range(41, 47), ("not_json", "missing_field", "empty_response"), strict=False):
        assert f"refused 1 {kind}: dirty.jsonl:{line}: " in out
        assert f"dirty.jsonl:{line}: " in page
    assert inspect(**options, **{"data.on_bad_row": "error"}) == 2
    assert "dirty.jsonl:41" in only_line(capfd)


def test_a_near_leak_is_counted_and_kept(inspect: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    long = "can you tell me how the old lighthouse near the harbour was built, and by whom ?"
    rows = [*DIRTY[:5], {**PAIR, "prompt": long}]
    for name, content in {"train": rows, "far": [{**PAIR, "prompt": long.replace("harbour", "harbor")}]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    options: dict[str, Any] = {"data.train": str(tmp_path / "train.jsonl"), "data.ood": "{}"}
    options |= {"data.ood.far": str(tmp_path / "far.jsonl"), "data.validation_share": 0, "data.id_share": 0}
    assert inspect(**options, output=str(tmp_path / "report")) == 0
    account = json.loads((tmp_path / "report" / "data_report.json").read_text())["train"]["total"]
    assert (account["near_leak"], account["refused"]["leak"], account["used"]) == (1, 0, 6)
    assert "near leak: 1 used rows" in capfd.readouterr().out


def test_positions_shorten_max_length_as_in_fit(inspect: Any, tmp_path: Path, laboratory: Any) -> None:
    backbone = tmp_path / "gpt2"
    backbone.mkdir()
    for file in Path(laboratory.folder, "backbone").iterdir():
        (backbone / file.name).write_bytes(file.read_bytes())
    size = json.loads((backbone / "config.json").read_text())["vocab_size"]
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 30, "vocab_size": size}
    (backbone / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="has 30 positions: 30 is used"):
        assert inspect(**{"model.backbone": str(backbone)}, output=str(tmp_path / "report")) == 0
    account = json.loads((tmp_path / "report" / "data_report.json").read_text())["train"]["total"]
    assert account["tokens"]["max"] == 30


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "mistyped key": ({"data.batchsize": 8}, ["--data.batchsize"]),
    "mistyped key of the trainer": ({"trainer.max_step": 8}, ["--trainer.max_step"]),
    "mistyped value": ({"data.max_length": "long"}, ["data.max_length", "'long'"]),
    "missing file": ({"data.train": "missing.jsonl"}, ["data.train", "missing.jsonl"]),
    "missing OOD file": ({"data.ood.far": "missing.jsonl"}, ["data.ood.far", "missing.jsonl"]),
    "missing model": ({"model.backbone": "./nobody"}, ["model.backbone", "./nobody", "does not exist"]),
    "missing config": ({"config": "missing.yaml"}, ["config", "missing.yaml"]),
    "bad objective": ({"objective": "aplot", "model.objective.margin.epsilon": -1}, ["epsilon", "-1"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, inspect: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options, said = MISTAKES[name]
    assert inspect(**options) == 2
    line = only_line(capfd)
    for part in said:
        assert part in line
    assert list((tmp_path / "here").iterdir()) == []


def test_an_output_that_is_no_folder(inspect: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert inspect(output=str(tmp_path / "file")) == 2
    assert f"aplot: --output: {tmp_path / 'file'}" in capfd.readouterr().err


def test_in_a_process_of_its_own(laboratory: Any, tmp_path: Path) -> None:
    process: subprocess.Popen = laboratory.start("inspect", tmp_path / "run", {"data.ood": "{}"})
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out.split()[0]) == (0, "set"), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
