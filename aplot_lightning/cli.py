"""The command line: which command was asked for, and one line for a user's mistake.

Only the command's own module is imported, so that help, light commands and their mistakes answer at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module

from aplot_lightning.errors import RunError, UserError

TRAINING = {
    "fit": "train a reward model",
    "validate": "evaluate a checkpoint on all validation loaders",
    "test": "evaluate a checkpoint on every set and write its figures and report",
    "predict": "rewards of every evaluation pair, through Lightning",
}
COMMANDS = {
    "report": "write a run's report, or show several runs side by side",
    "score": "a reward for every response of a file",
}
USER_MISTAKE, FAILURE, TERMINATED = 2, 1, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 on a user's mistake, 143 after SIGTERM, 1 on anything else."""
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
        return _say("interrupted", 130)


def _run(command: str, arguments: list[str]) -> int:
    if command in TRAINING:
        from aplot_lightning.training.cli import run

        return run([command, *arguments])
    if command in COMMANDS:
        _run_light(command, arguments)
        return 0
    raise UserError(f"there is no command {command!r}; the commands are {', '.join([*TRAINING, *COMMANDS])}")


def _run_light(command: str, arguments: list[str]) -> None:
    from jsonargparse import ArgumentError, ArgumentParser

    module = import_module(f"aplot_lightning.commands.{command}")
    by_place: dict[str, str] = getattr(module, "BY_PLACE", {})
    parser = ArgumentParser(prog=f"aplot {command}", description=COMMANDS[command], exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file with options")
    parser.add_function_arguments(module.main, skip=set(by_place))
    for name, text in by_place.items():
        parser.add_argument(name, nargs="+", help=text)
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise UserError(f"aplot {command}: {one_line(str(error))}") from error
    values.pop("config", None)
    module.main(**values.as_dict())


NOISE = re.compile(
    r"Given value|Subtypes: |Errors:$|Does not validate|Problem with given class_path|Expected a <class 'NoneType'>"
    r"|Expected a <class '\w+'>\. Got value: Namespace"
)


def one_line(message: str) -> str:
    """What jsonargparse says of a wrong value, on one line: the key that was set, and the innermost complaint.

    For a nested class it lists what every member of every union says; all but one of these lines are noise.
    """
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    telling = [line for line in lines if not NOISE.match(line.partition(": ")[2] or line) and not NOISE.match(line)]
    if len(lines) <= 2 or not telling:
        return " ".join(lines)
    keys = [line.strip(": ") for line in (lines[0], *telling[-2:-1]) if line.startswith("Parser key")]
    return ": ".join(dict.fromkeys([*keys, telling[-1]]))


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
