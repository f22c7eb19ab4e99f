"""What a stranger gets wrong: each time exit code 2, one line that names path or key, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

# imported before any test captures stderr, so that Lightning's log handler keeps one that stays open
import aplot_lightning.training.cli  # noqa: F401

PAIR = {"prompt": "who ?", "chosen": "the cat", "rejected": "no"}
WITHOUT_FIELDS = [{"question": "who ?", "answer": "the cat"}, {"prompt": "who ?", "chosen": "the cat"}]
BROKEN = ["data: [1, {", "- a list"]
# what is changed on the command line, and what the one line must say; {folder} is where the files of `prepared` lie
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "missing file": ({"data.train": "{folder}/missing.jsonl"}, ["data.train", "{folder}/missing.jsonl"]),
    "missing OOD file": ({"data.ood.far": "{folder}/missing.jsonl"}, ["data.ood.far", "{folder}/missing.jsonl"]),
    "empty file": ({"data.train": "{folder}/empty.jsonl"}, ["data.train", "{folder}/empty.jsonl", "empty"]),
    "not JSON": ({"data.train": "{folder}/text.jsonl"}, ["data.train", "text.jsonl:1", "not JSON"]),
    "binary file": ({"data.train": "{folder}/binary.jsonl"}, ["data.train", "{folder}/binary.jsonl", "JSONL"]),
    "damaged gzip": ({"data.train": "{folder}/cut.jsonl.gz"}, ["data.train", "{folder}/cut.jsonl.gz", "damaged"]),
    "folder for a file": ({"data.train": "{folder}"}, ["data.train", "{folder}", "is a folder"]),
    "rows without the fields": (
        {"data.train": "{folder}/fields.jsonl"},
        ["data.train", "fields.jsonl:1", '"chosen"', "'question'"],
    ),
    "one bad row under error": (
        {"data.train": "{folder}/one_bad.jsonl", "data.on_bad_row": "error"},
        ["data.train", "one_bad.jsonl:2", "skip"],
    ),
    "unknown key": ({"data.batchsize": 8}, ["--data.batchsize"]),
    "mistyped key of a class": (
        {"objective": "aplot", "model.objective.margin.epsilom": 1},
        ["model.objective.margin", "'epsilom'", "epsilon"],
    ),
    "mistyped value": ({"data.batch_size": "many"}, ["data.batch_size", "'many'"]),
    "missing backbone": (
        {"model.backbone": "{folder}/nobody"},
        ["model.backbone", "{folder}/nobody", "does not exist"],
    ),
    "backbone without a model": ({"model.backbone": "{folder}"}, ["model.backbone", "{folder}", "config.json"]),
    "batch size 0": ({"data.batch_size": 0}, ["data.batch_size", "0"]),
    "micro-batch size 0": ({"data.micro_batch_size": 0}, ["data.micro_batch_size", "0"]),
    "negative length": ({"data.max_length": -1}, ["data.max_length", "-1"]),
    "bad class path": ({"model.objective.margin": "Transportt"}, ["model.objective.margin", "Transportt"]),
    "epsilon -1": ({"objective": "aplot", "model.objective.margin.epsilon": -1}, ["epsilon", "-1", "above 0"]),
    "missing margin column": (
        {"objective": "margin", "data.train": "{folder}/plain.jsonl"},
        ["ColumnMargin", '"margin"', "data.train"],
    ),
    "incomplete margin column": (
        {"objective": "margin", "data.train": "{folder}/gaps.jsonl"},
        ["ColumnMargin", '"margin"', "data.train"],
    ),
    "broken YAML": ({"config": "{folder}/broken0.yaml"}, ["--config", "{folder}/broken0.yaml:1"]),
    "YAML without keys": ({"config": "{folder}/broken1.yaml"}, ["--config", "{folder}/broken1.yaml"]),
    "missing config": ({"config": "{folder}/missing.yaml"}, ["config", "{folder}/missing.yaml"]),
    "no devices": ({"trainer.devices": -3}, ["trainer", "devices"]),
    "run directory is a file": ({"run_dir": "{folder}/plain.jsonl"}, ["run_dir", "{folder}/plain.jsonl"]),
}
GOOD = {"data.train": "{folder}/plain.jsonl", "data.ood": "{{}}", "data.validation_share": 0.3, "trainer.max_steps": 1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    pairs = [{**PAIR, "prompt": f"who is {n} ?"} for n in range(60)]
    files: dict[str, list[Any]] = {
        "plain": pairs,
        "gaps": [{**pair, "margin": 1.0} if n % 2 else pair for n, pair in enumerate(pairs)],
        "fields": WITHOUT_FIELDS,
        "one_bad": [PAIR, WITHOUT_FIELDS[0]],
        "empty": [],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.jsonl").write_text("Dear reader,\nthese are no pairs.\n")
    (folder / "binary.jsonl").write_bytes(bytes(range(256)) * 40)
    (folder / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00")
    for place, content in enumerate(BROKEN):
        (folder / f"broken{place}.yaml").write_text(content)
    return folder


def filled(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {key: value.format(folder=folder) if isinstance(value, str) else value for key, value in options.items()}


def only_line(stderr: str) -> str:
    """The one line that is ours; Lightning says before it which seed it has set."""
    (line,) = (line for line in stderr.splitlines() if not line.startswith(("Seed set", "INFO: Seed set")))
    assert line.startswith("aplot: ")
    return line


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    name: str,
    laboratory: Any,
    prepared: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in prepared.iterdir())
    options, said = MISTAKES[name]
    options = filled({**GOOD, **options}, prepared)
    run_dir = Path(options.pop("run_dir", tmp_path / "run"))
    assert laboratory("fit", run_dir, options) == 2
    printed = capfd.readouterr()
    line = only_line(printed.err)
    for part in said:
        assert part.format(folder=prepared) in line
    assert "Traceback" not in printed.err + printed.out
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in prepared.iterdir()) == before


@pytest.mark.stress
@pytest.mark.parametrize("name", ["missing file", "epsilon -1"])
def test_a_mistake_in_a_process_of_its_own(name: str, laboratory: Any, prepared: Path, tmp_path: Path) -> None:
    options, said = MISTAKES[name]
    run_dir = tmp_path / "run"
    process = laboratory.start("fit", run_dir, filled({**GOOD, **options}, prepared))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    line = only_line(err)
    for part in said:
        assert part.format(folder=prepared) in line
    assert not run_dir.exists()


def test_the_same_command_without_the_mistake_goes_on_where_the_mistake_left_nothing(
    laboratory: Any, prepared: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    good = filled(GOOD, prepared)
    assert laboratory("fit", run_dir, {**good, "data.train": "missing.jsonl"}) == 2
    assert laboratory("fit", run_dir, good) == 0
    assert (run_dir / "metrics.json").is_file()
    assert (run_dir / "checkpoints" / "best.ckpt").is_file()
