"""aplot inspect: the data report of a config. It takes what `fit` takes, reads the data as `fit` would, and stops.

It is LightningCLI like `fit`, so that keys, overrides and their mistakes are the same; only the model is an outline
(its tokenizer and its positions), and no trainer is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from aplot_lightning.data.datamodule import DataRequirements
from aplot_lightning.errors import UserError
from aplot_lightning.model.outline import read_outline
from aplot_lightning.training import cli
from aplot_lightning.training.module import RewardModelingModule

DESCRIPTION = "read the data as fit would and print the data report"


def run(arguments: list[str]) -> None:
    """Prints what became of every row of a config's data, and what the model would read.

    Args:
        arguments: those of `fit`, and ``--output``, a folder for data_report.json and data_report.md.

    Raises:
        UserError: a key or value is wrong, a source cannot be used, or there is no such model.
    """
    cli.run(["inspect", *arguments], InspectCLI)


class Inspector(L.Trainer):
    """Gives the parser the trainer's keys and the arguments of `fit`; none is ever made."""

    inspect = L.Trainer.fit


class Outlined:
    """In the place of the module that is trained: what the data asks of it."""

    def __init__(self, backbone: str, init_from: str | None = None, **_: Any) -> None:
        outline = read_outline(init_from or backbone, "model.backbone")
        # how batches are laid out does not change the report, so packing is not tried
        self.requirements = DataRequirements(outline.tokenizer, outline.position_limit, lambda: None)


class InspectCLI(cli.AplotCLI):
    """The command `inspect` instead of Lightning's own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "trainer_class": Inspector})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"inspect": LightningCLI.subcommands()["fit"]}

    def setup_parser(self, *arguments: Any) -> None:
        super().setup_parser(*arguments)
        parser = self._parser("inspect")
        parser.prog, parser.description = "aplot inspect", DESCRIPTION

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--output", type=str | None, default=None, help="a folder for data_report.json and data_report.md"
        )

    def before_instantiate_classes(self) -> None:
        """Everything of the config is made but the model; there is no run directory to look at."""
        self.parser.add_instantiator(_outlined, RewardModelingModule, prepend=True)

    def instantiate_trainer(self, **_: Any) -> Any:
        """None: what follows from the data needs no trainer, and neither does how batches are laid out."""
        self.datamodule.connect(self.model.requirements)
        self.datamodule.setup()

    def _run_subcommand(self, subcommand: str) -> None:
        """Prints the report: Lightning would call the trainer here."""
        report = self.datamodule.report
        print(report.to_text())
        output = self.config[subcommand].output
        if output is not None:
            try:
                Path(output).mkdir(parents=True, exist_ok=True)
                report.write(Path(output))
            except OSError as error:
                raise UserError(f"--output: {output} could not be written: {error.strerror}; name a folder") from error
            print(f"\nreport: {Path(output) / 'data_report.md'}")


def _outlined(_: type, *arguments: Any, **options: Any) -> Outlined:
    return Outlined(*arguments, **options)
