"""The command line: runs the named command, and reports a user's mistake in one line.

Imports only the module of the named command, so that help, light commands and mistakes in arguments are fast.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

from aplot_lightning.argument_errors import one_line
from aplot_lightning.errors import RunError, UserError
from aplot_lightning.exit_codes import FAILURE, INTERRUPTED, USER_MISTAKE
from aplot_lightning.key_check import check_keys

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0, 2 on a user's mistake, 130 after ctrl-C, 143 after SIGTERM, 1 on anything else.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if os.environ.get("APLOT_PARENT", "").isdigit():  # a child of tune or compare, or one of its ranks
        from aplot_lightning.tuning.processes import end_with_parent

        end_with_parent()
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(_help())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("aplot-lightning"))
        return 0
    try:
        return _run(argv[0], argv[1:])
    except UserError as error:
        return _report(error, USER_MISTAKE)
    except RunError as error:
        return _report(error, FAILURE)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)


def _run(command: str, arguments: list[str]) -> int:
    configs = _read_configs(arguments)
    if command in TRAINING or command == "inspect":
        check_keys(arguments, configs)
    if command in TRAINING:
        from aplot_lightning.training.cli import run

        return run([command, *arguments])
    if command in COMMANDS:
        _run_light(command, arguments)
        return 0
    raise UserError(f"there is no command {command!r}; the commands are {', '.join([*TRAINING, *COMMANDS])}")


def _read_configs(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """The contents of the config files of a command.

    Raises UserError for an invalid file, with its name and the line, which jsonargparse leaves out.
    """
    import yaml

    configs = []
    split = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    named = [value for option, value in pairwise(split) if option in {"--config", "-c"}]
    for path in filter(Path.is_file, map(Path, named)):
        try:
            content = yaml.safe_load(path.read_bytes())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            what = getattr(error, "problem", None) or getattr(error, "reason", None)
            raise UserError(f"--config: {where}: invalid YAML: {what}") from error
        if not isinstance(content, dict):
            raise UserError(f"--config: {path} holds no keys: write one `key: value` a line, as in conf/")
        configs.append(content)
    return configs


def _run_light(command: str, arguments: list[str]) -> None:
    module = import_module(f"aplot_lightning.commands.{command}")
    if hasattr(module, "run"):  # parses its own arguments
        module.run(arguments)
        return
    from jsonargparse import ArgumentError, ArgumentParser

    if getattr(module, "CONFIGS_COMPOSE", False):  # jsonargparse appends to a list with a plus only
        arguments = [re.sub(r"^--config(?==|$)", "--config+", argument) for argument in arguments]
    by_place: dict[str, str] = getattr(module, "BY_PLACE", {})
    parser = ArgumentParser(prog=f"aplot {command}", description=COMMANDS[command], exit_on_error=False)
    if "config" not in signature(module.main).parameters:
        parser.add_argument("--config", action="config", help="a YAML file with options")
    parser.add_function_arguments(module.main, skip=set(by_place))
    for name, text in by_place.items():
        parser.add_argument(name, nargs="+", help=text)
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise UserError(f"{command}: {one_line(str(error))}") from error
    module.main(**{name: values.as_dict()[name] for name in signature(module.main).parameters})


def _report(message: object, code: int) -> int:
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
