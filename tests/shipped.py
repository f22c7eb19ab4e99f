"""What the files of conf/objective/ ask for, read as the command line reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from aplot_lightning.model.heads import Head
from aplot_lightning.objectives import Objective

CONF = Path(__file__).parents[1] / "conf" / "objective"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def shipped(*arguments: str) -> Any:
    """The `model` part of `--config` files and options: its objective, head and keep_lm_head, instantiated."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--data.sources_in_every_batch", type=bool, default=False)
    parser.add_argument("--model.objective", type=Objective)
    parser.add_argument("--model.head", type=Head | None, default=None)
    parser.add_argument("--model.keep_lm_head", type=bool, default=False)
    return parser.instantiate(parser.parse_args(list(arguments))).model
