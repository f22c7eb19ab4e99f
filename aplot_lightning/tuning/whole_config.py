"""The whole config that `fit` makes of its words, with every default, without running anything."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from aplot_lightning.errors import RunError

# what belongs to one run or terminal and not to the experiment
LEFT_OUT = ("config", "run_dir", "overwrite", "ckpt_path", "trainer.enable_progress_bar")


def whole_config(words: Sequence[str]) -> dict[str, Any]:
    """What `fit` would run with: configs merged, defaults filled in, types and keys checked.

    Args:
        words: what stands behind ``fit`` on the command line.

    Raises:
        UserError: `fit` would refuse them.
    """
    from aplot_lightning.training.cli import run

    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            run(["fit", *words, "--print_config"])
    except SystemExit as ended:
        if ended.code:
            raise
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    for key in LEFT_OUT:
        *path, name = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node.pop(name, None)
    return config


def write_whole_config(path: Path, config: Mapping[str, Any], header: Sequence[str]) -> None:
    """Writes a config that `fit --config` takes, under a comment, and reads it back as `fit` would.

    Raises:
        RunError: `fit` would read another config from the file.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".yaml.part")
    part.write_text(comment + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    if whole_config(["--config", str(part)]) != config:
        raise RunError(f"{part}: fit reads another config from this file than the study's trials had; please report it")
    os.replace(part, path)
