"""What `fit` would run: the whole config that it makes of its arguments, with every default, without running anything.

The one place where `tune` and `compare` ask `fit`'s own parser.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from aplot_lightning.errors import RunError
from aplot_lightning.files import write_text
from aplot_lightning.tuning.processes import PARENT, end_with_parent, preloaded_context

# belongs to one run or terminal and not to the experiment
LEFT_OUT = ("config", "run_dir", "overwrite", "ckpt_path", "trainer.enable_progress_bar")


def config_arguments(configs: Iterable[str | Path]) -> list[str]:
    """`--config PATH` for each file."""
    return [argument for path in configs for argument in ("--config", str(path))]


def option_arguments(values: Mapping[str, Any]) -> list[str]:
    """`--KEY VALUE` for each key, values as JSON."""
    return [
        argument
        for key, value in values.items()
        for argument in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def fit_configs(arguments: Sequence[Sequence[str]], workers: int = 1) -> Iterator[dict[str, Any]]:
    """What `fit` would run with, for each list of arguments: configs merged, defaults filled in, all keys checked.

    Reads them in processes forked from the fork server, so that this process imports neither torch nor Lightning.

    Args:
        arguments: for each config what follows ``fit`` on the command line.
        workers: processes at a time.

    Raises:
        UserError: `fit` would refuse the arguments; raised when their turn comes.
        RunError: a process was killed.
    """
    with ProcessPoolExecutor(workers, preloaded_context(), initializer=_end_with_parent) as pool:
        try:
            yield from pool.map(fit_config, map(list, arguments))
        except BrokenProcessPool as error:
            raise RunError("a process that reads configs was killed; run the same command again") from error


def _end_with_parent() -> None:
    os.setsid()  # the group that ends is this process alone
    os.environ[PARENT] = str(os.getppid())
    end_with_parent()


def fit_config(arguments: Sequence[str]) -> dict[str, Any]:
    """The same in this process, for one config."""
    from aplot_lightning.training.cli import run

    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(io.StringIO()):
            run(["fit", *arguments, "--print_config"])
    except SystemExit as end:
        if end.code:
            raise RunError(f"fit --print_config failed with exit code {end.code}") from end
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    for key in LEFT_OUT:
        *path, name = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node.pop(name, None)
    return config


def write_fit_config(path: Path, config: Mapping[str, Any], header: Sequence[str]) -> None:
    """Writes a config that `fit --config` takes, under a comment.

    Raises:
        RunError: `fit` would read another config from the file.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header)
    text = comment + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    with TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_text(text, encoding="utf-8")
        (read,) = fit_configs([config_arguments([copy])])
    if read != config:
        raise RunError(f"{path}: fit would read another config from this file than the trials had; please report it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def is_single_process(config: Mapping[str, Any]) -> bool:
    """Whether a run with this whole config is one process, which may be forked from a preloaded server."""
    trainer = config.get("trainer", {})
    devices = trainer.get("devices")
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    return (one or (devices == "auto" and trainer.get("accelerator") == "cpu")) and trainer.get("num_nodes", 1) == 1


def lean_checkpoints(config: Mapping[str, Any]) -> dict[str, bool]:
    """Keys that keep a frozen backbone out of a run's checkpoints, if nothing in the run needs it in the file."""
    frozen = config.get("model", {}).get("freeze_backbone", False)
    plain = is_single_process(config) and not config["trainer"].get("callbacks")
    return {"checkpoint_backbone": False} if frozen and plain else {}
