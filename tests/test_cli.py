"""The command line: commands, messages of mistakes, exit codes, and what is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import aplot_lightning.training.cli as training
from aplot_lightning import cli
from aplot_lightning.argument_errors import one_line
from aplot_lightning.cli import COMMANDS, TRAINING, main
from aplot_lightning.errors import RunError, UserError

HEAVY = {"torch", "lightning", "transformers", "datasets", "numpy", "pyarrow", "matplotlib", "tensorboard", "ot"}
CONF = Path(__file__).parents[1] / "conf"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's own, hidden from users


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a mistake: one line on stderr, nothing on stdout."""
    printed = capsys.readouterr()
    (line,) = (line for line in printed.err.splitlines() if not line.startswith(("Seed set", "INFO: Seed set")))
    assert printed.out == ""
    assert line.startswith("aplot: ")
    return line.removeprefix("aplot: ")


def write_pairs(path: Path, count: int = 3) -> str:
    rows = [{"prompt": f"who is {n} ?", "chosen": "the cat", "rejected": f"no {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Help


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    listed = {line.split()[0] for line in printed.out.splitlines() if line.startswith("  ")}
    assert listed >= {*TRAINING, *COMMANDS}
    example = printed.out.splitlines()[-1].split()
    assert example[:2] == ["aplot", "fit"]
    assert all((CONF.parent / word).is_file() for word in example if word.endswith(".yaml"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_light_command_lists_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"aplot {command}" in text
    assert COMMANDS[command] in " ".join(text.split())
    assert "--config" in text


def test_every_light_command_has_its_file_and_every_file_its_command() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("commands/*.py")} - {"__init__"}
    assert files == set(COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("aplot-lightning")


def test_the_console_script_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="aplot")
    assert script.load() is main


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["fitt"],
        ["report", "--help"],
        ["score", "--modell", "x"],
        ["fit", "--config", str(CONF / "quickstart.yaml"), "--model.lerning_rate", "3"],
    ],
)
def test_help_and_simple_mistakes_import_nothing_heavy(arguments: list[str]) -> None:
    code = f"""if True:
        import runpy, sys
        sys.argv = ["aplot_lightning", *{arguments!r}]
        try:
            runpy.run_module("aplot_lightning", run_name="__main__")
        finally:
            print("\\nheavy:", *sorted({HEAVY!r} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = 0 if arguments[-1] == "--help" else 2
    assert done.returncode == expected, done.stderr
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    assert imported <= ({"numpy"} if arguments[0] in COMMANDS else set())


# Exit codes


def raiser(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("this key is wrong"), 2, "this key is wrong"),
        (RunError("the loss is not finite"), 1, "the loss is not finite"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "run", raiser(error))
    assert main(["fit"]) == code
    assert complaint(capsys) == message


def test_sigterm_ends_with_143(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "AplotCLI", raiser(training.SIGTERMException()))
    assert main(["fit"]) == 143


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "run", raiser(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):  # which Python ends with exit code 1
        main(["fit"])


def test_an_unknown_command_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fitt", "--config", "x.yaml"]) == 2
    line = complaint(capsys)
    assert line.startswith("there is no command 'fitt'")
    assert all(command in line for command in [*TRAINING, *COMMANDS])


# Light commands through the dispatcher


def test_score_gives_a_fresh_head_its_warning_and_every_response_a_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "scored.jsonl"
    assert main(["score", "--model", "world-decoder", "--input", source, "--output", str(target)]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: ")
    assert len(printed.err.splitlines()) == 1
    assert printed.out == f"scored 3 rows: {target}\n"
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"who is {n} ?" for n in range(3)]
    assert all(np.isfinite([row["chosen_reward"], row["rejected_reward"]]).all() for row in rows)
    assert len({row["rejected_reward"] for row in rows}) == 3


def test_the_command_line_overrides_the_config_of_a_light_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": "world-decoder", "input": write_pairs(tmp_path / "pairs.jsonl"), "output": "unused"}
    config, target = tmp_path / "score.yaml", tmp_path / "scored.jsonl"
    config.write_text(json.dumps(options))  # JSON is YAML
    assert main(["score", "--config", str(config), "--output", str(target)]) == 0
    assert len(target.read_text().splitlines()) == 3
    assert str(target) in capsys.readouterr().out


def test_report_takes_several_runs_as_positional_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bt", "aplot", "third"):
        run = tmp_path / name
        (run / "predictions").mkdir(parents=True)
        columns = {"id": [str(n) for n in range(20)], "prompt": np.arange(20), "target": np.ones(20)}
        rewards = {"chosen_reward": np.ones(20), "rejected_reward": np.zeros(20)}
        pq.write_table(pa.table({**columns, **rewards}), run / "predictions" / "id.parquet")
        metrics = {"id": {"accuracy": 1.0, "ci95": [1.0, 1.0], "pairs": 20}, "ood": {}, "train": {}}
        (run / "metrics.json").write_text(json.dumps(metrics))
        (run / "config.yaml").write_text("model:\n  backbone: tiny\n")
        (run / "run.json").write_text("{}")
    runs = [str(tmp_path / name) for name in ("bt", "aplot", "third")]
    assert main(["report", *runs, "--output", str(tmp_path / "side")]) == 0
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header == ["set", "pairs", "bt", "aplot", "third", "aplot", "-", "bt", "third", "-", "bt"]
    assert (tmp_path / "side" / "comparison.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score"], "score: the following arguments are required: model, input, output"),
        (["report"], "report: the following arguments are required: runs"),
        (["score", "--modell", "x"], "score: unrecognized arguments: --modell x; see --help"),
        (["score", "--model", "m", "--input", "i", "--output", "o", "--batch_size", "many"], "score: batch_size: "),
        (["report", "--config", "missing.yaml", "x"], "report: config: File does not exist: "),
        (["report", "missing"], "missing is not there"),
    ],
)
def test_mistakes_of_light_commands(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in complaint(capsys)
    assert not list(tmp_path.iterdir())


# Messages of wrong configs, through the real parser of fit

OBJECTIVE = "class_path: aplot_lightning.objectives.Objective"
MARGIN = "class_path: aplot_lightning.objectives.TransportMargin"
WORLD = "class_path: aplot_lightning.data.world.PreferenceWorld"
MESSAGES = {
    # an unknown key, at every depth
    "data: {batchsize: 3}": ["'data.batchsize' is not a known key; did you mean data.batch_size?"],
    "model: {xyz: 3}": ["'model.xyz' is not a known key; see --help"],
    "trainer: {max_step: 3}": ["'trainer.max_step' is not a known key; did you mean trainer.max_steps?"],
    "dta: {x: 3}": ["'dta.x'", "--help"],
    f"model: {{objective: {{{OBJECTIVE}, init_args: {{margin: {{{MARGIN}, init_args: {{epsilom: 3}}}}}}}}}}": [
        "model.objective.margin: ",
        "'epsilom' is not accepted by TransportMargin, only ",
        "iterations",
        "did you mean epsilon?",
    ],
    f"data: {{ood: {{far: {{{WORLD}, init_args: {{pears: 3}}}}}}}}": [
        "data.ood.far: Option 'pears' is not accepted by PreferenceWorld, only shift, pairs, ",
    ],
    # a value out of a list
    "model: {pooling: first}": ["model.pooling: ", "one of 'auto', 'last', 'classification', 'mean'", "first"],
    "data: {on_bad_row: fly}": ["data.on_bad_row: ", "one of 'skip', 'error'", "fly"],
    "trainer: {precision: 7}": ["trainer.precision: ", "'bf16-mixed'", "one of 64, 32, 16 or one of", "Got value: 7"],
    f"data: {{id: {{{WORLD}, init_args: {{shift: up}}}}}}": ["data.id.shift: ", "'new_topics'", "Got value: up"],
    # a missing class, or one of the wrong kind
    "model: {objective: {class_path: nosuch.Thing}}": ["model.objective: No module named 'nosuch'", "a class path"],
    "model: {objective: {class_path: aplot_lightning.objectives.Objectiv}}": [
        "model.objective: module 'aplot_lightning.objectives' has no attribute 'Objectiv'",
        "did you mean aplot_lightning.objectives.Objective?",
    ],
    "model: {objective: {class_path: aplot_lightning.objective.Objective}}": [
        "model.objective: No module named 'aplot_lightning.objective'; give a class path"
    ],
    "model: {objective: {class_path: torch.nn.Linear}}": [
        "model.objective: ",
        "torch.nn.Linear",
        "subclass of Objective",
    ],
    f"model: {{objective: {{{OBJECTIVE}, init_args: {{margin: Transportt}}}}}}": [
        "model.objective.margin: ",
        "Transportt",
        "give a class path",
    ],
    # a wrong type
    "data: {batch_size: many}": ["data.batch_size: ", "PositiveInt", "'many'"],
    "data: {micro_batch_size: 0}": ["data.micro_batch_size: ", "v>0", "Got value: 0"],
    "trainer: {max_epochs: many}": ["trainer.max_epochs: Expected int. Got value: many"],
    "seed_everything: abc": ["seed_everything: Expected bool or int. Got value: abc"],
    f"model: {{objective: {{{OBJECTIVE}, init_args: {{margin: {{{MARGIN}, init_args: {{epsilon: big}}}}}}}}}}": [
        "model.objective.margin.epsilon: Expected float. Got value: big"
    ],
    "data: {ood: 3}": ["data.ood: Expected dict. Got value: 3"],
    "data: {ood: {far: 3}}": ["data.ood: Not a valid subclass of Source. Got value: 3"],
    # a value that a class refuses
    f"data: {{id: {{{WORLD}, init_args: {{pairs: -3}}}}}}": ["fit: PreferenceWorld: pairs = -3 must be a whole number"],
    # invalid YAML, or YAML without keys
    "data: [1, {": ["bad.yaml:1: invalid YAML: "],
    "data:\n\tx: 1": ["bad.yaml:2: invalid YAML: "],
    "- 1\n- 2": ["bad.yaml holds no keys"],
    "hello": ["bad.yaml holds no keys"],
    "": ["bad.yaml holds no keys"],
    "\x00\x01": ["bad.yaml: invalid YAML"],
}


@pytest.mark.parametrize("content", MESSAGES)
def test_a_wrong_config_is_one_line_with_key_and_what_is_accepted(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("APLOT_RUN_DIR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(variable, "")  # restored after the test
    bad, run_dir = tmp_path / "bad.yaml", tmp_path / "run"
    bad.write_text(content)
    arguments = ["fit", "--config", str(CONF / "quickstart.yaml"), "--config", str(bad), "--run_dir", str(run_dir)]
    monkeypatch.setattr(sys, "argv", ["aplot", *arguments])
    assert main(arguments) == 2
    line = complaint(capsys)
    for part in MESSAGES[content]:
        assert part in line
    assert "Union" not in line
    assert "<class" not in line
    assert not run_dir.exists()


def test_a_config_that_is_missing_or_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, message in {tmp_path / "no.yaml": "does not exist", tmp_path: "not a file"}.items():
        arguments = ["fit", f"--config={path}"]
        monkeypatch.setattr(sys, "argv", ["aplot", *arguments])
        assert main(arguments) == 2
        line = complaint(capsys)
        assert str(path) in line
        assert message in line


@pytest.mark.parametrize("message", ["", "one", "two arguments\n  and more", 'Parser key "a":\n  Errors:\n'])
def test_any_message_becomes_one_line_without_loss_of_all(message: str) -> None:
    line = one_line(message)
    assert "\n" not in line
    assert bool(line) == bool(message)
