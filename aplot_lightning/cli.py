"""The command line: which command was asked for, and one line for a user's mistake.

Only the command's own module is imported, so that help, light commands and their mistakes answer at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from itertools import pairwise
from pathlib import Path

from aplot_lightning.errors import RunError, UserError

TRAINING = {
    "fit": "train a reward model",
    "validate": "evaluate a checkpoint on all validation loaders",
    "test": "evaluate a checkpoint on every set and write its figures and report",
    "predict": "rewards of every evaluation pair, through Lightning",
}
COMMANDS = {
    "aggregate": "the answer that scored samples vote for, with weights",
    "average": "one model whose weights are the mean of several runs' weights",
    "compare": "objectives x seeds on the same data, with paired statistics",
    "evaluate": "a public benchmark by its own rule",
    "export": "a plain Transformers folder that other programs load, with a model card",
    "inspect": "read the data as fit would and print the data report",
    "rank": "best-of-n: the candidates of each prompt, best first",
    "report": "write a run's report, or show several runs side by side",
    "score": "a reward for every response of a file",
    "select": "preference pairs for DPO out of scored candidates",
    "tune": "an Optuna study whose trials are runs of fit",
}
USER_MISTAKE, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0, 2 on a user's mistake, 130 after ctrl-C, 143 after SIGTERM, 1 on anything else.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(_help())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("aplot-lightning"))
        return 0
    try:
        return _run(words[0], words[1:])
    except UserError as error:
        return _say(error, USER_MISTAKE)
    except RunError as error:
        return _say(error, FAILURE)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)


def _run(command: str, arguments: list[str]) -> int:
    _check_configs(arguments)
    if command in TRAINING:
        from aplot_lightning.training.cli import run

        return run([command, *arguments])
    if command in COMMANDS:
        _run_light(command, arguments)
        return 0
    raise UserError(f"there is no command {command!r}; the commands are {', '.join([*TRAINING, *COMMANDS])}")


def _check_configs(arguments: Sequence[str]) -> None:
    """Raises UserError for a config that is no YAML, with the file and line that jsonargparse would not tell."""
    import yaml

    named = [after for word, after in pairwise(arguments) if word == "--config"]
    named += [word.removeprefix("--config=") for word in arguments if word.startswith("--config=")]
    for path in filter(Path.is_file, map(Path, named)):
        try:
            content = yaml.safe_load(path.read_bytes())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            what = getattr(error, "problem", None) or getattr(error, "reason", None)
            raise UserError(f"--config: {where}: no YAML: {what}") from error
        if not isinstance(content, dict):
            raise UserError(f"--config: {path} holds no keys: write one `key: value` a line, as in conf/")


def _run_light(command: str, arguments: list[str]) -> None:
    module = import_module(f"aplot_lightning.commands.{command}")
    if hasattr(module, "run"):  # it reads its arguments itself
        module.run(arguments)
        return
    from jsonargparse import ArgumentError, ArgumentParser

    by_place: dict[str, str] = getattr(module, "BY_PLACE", {})
    parser = ArgumentParser(prog=f"aplot {command}", description=COMMANDS[command], exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file with options")
    parser.add_function_arguments(module.main, skip=set(by_place))
    for name, text in by_place.items():
        parser.add_argument(name, nargs="+", help=text)
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise UserError(f"{command}: {one_line(str(error))}") from error
    values.pop("config", None)
    module.main(**values.as_dict())


# lines of jsonargparse's that only lead to a complaint, or that repeat one
NOISE = re.compile(
    r"Parser key |Does not validate|Problem with given class_path|Subtypes: |Errors:$|Given value|Expected a path but|"
    r"Subclass types expect|a class path \(str\)|a dict with|Expected a <class 'NoneType'>|"
    r"Expected a <class '\w+'>\. Got value: Namespace"
)
CLASS = re.compile(r"Problem with given class_path '(.+)':")
UNKNOWN = re.compile(r"unrecognized arguments|does not accept option|Option .* is not accepted$")
NO_CLASS = re.compile(r"Expected a dot import path|module .* has no attribute|No module named")


def one_line(message: str) -> str:
    """What jsonargparse says of a mistake, on one line: the key, the innermost complaint, and what is accepted.

    For a nested class it lists what every member of every union says, in a tree; all but the deepest of it is noise.
    """
    text = re.sub(r'(Parser key "[^"]+":) *(?=\S)', r"\1\n  ", message)
    lines = [(len(line) - len(line.lstrip(" -")), line.strip(" -")) for line in text.splitlines() if line.strip(" -")]
    telling = [place for place, (_, line) in enumerate(lines) if not NOISE.match(line)]
    deepest = max((lines[place][0] for place in telling), default=0)
    places = [place for place in telling if lines[place][0] == deepest]
    if not places or deepest == 0:
        return _plain(" ".join(line for _, line in lines))
    above = _above(lines, places[0])
    keys = [line.split('"')[1] for line in above if line.startswith("Parser key")]
    complaints = dict.fromkeys(lines[place][1] for place in places)
    special = [complaint for complaint in complaints if not complaint.startswith("Expected ")]
    said = " or ".join(special or complaints).replace(" or Expected ", " or ")
    given = next((line for _, line in lines[places[-1] :] if line.startswith("Given value: ")), "").partition(": ")[2]
    if given and not re.match(r"NestedArg|Namespace|[{\[]", given) and given not in re.split(r"[\s'\"]+", said):
        said += f". Got value: {given}"
    classes = [found[1] for found in map(CLASS.match, above) if found]
    return f"{'.'.join(keys)}: {_plain(said, classes[-1:])}" if keys else _plain(said, classes[-1:])


def _above(lines: Sequence[tuple[int, str]], place: int) -> list[str]:
    """The lines that a line of the tree hangs on, from the root down."""
    depth, above = lines[place][0], []
    for indent, line in reversed(lines[:place]):
        if indent < depth:
            depth = indent
            above.append(line)
    return above[::-1]


def _plain(said: str, classes: Sequence[str] = ()) -> str:
    """A complaint without Python's own spelling of types, and with what is accepted where it does not say so."""
    said = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", said)
    said = re.sub(r"a typing\.Literal\[([^]]*)\]", r"one of \1", said)
    if NO_CLASS.search(said):
        return f"{said}; a class path is meant, such as aplot_lightning.objectives.Objective"
    if not UNKNOWN.search(said):
        return said
    for path in classes:
        module, _, name = path.rpartition(".")
        return f"{said} by {name}, only {', '.join(signature(getattr(import_module(module), name)).parameters)}"
    return f"{said}; see --help"


def _say(message: object, code: int) -> int:
    print(f"aplot: {message}", file=sys.stderr)
    return code


def _help() -> str:
    rows = {**TRAINING, **COMMANDS}
    width = max(len(name) for name in rows)
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())
    return (
        "usage: aplot COMMAND [options]      (or python -m aplot_lightning COMMAND)\n\n"
        "Reward models from preference pairs, with optimal-transport margins.\n\n"
        f"commands:\n{listing}\n\n"
        "aplot COMMAND --help shows a command's options. Start with\n"
        "  aplot fit --config conf/quickstart.yaml --config conf/objective/aplot.yaml"
    )
