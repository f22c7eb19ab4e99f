"""fit, validate, test and predict through LightningCLI, with a run directory."""

from __future__ import annotations

import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed
from jsonargparse import ArgumentError
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from aplot_lightning.argument_errors import one_line
from aplot_lightning.data.datamodule import PreferenceDataModule
from aplot_lightning.errors import UserError
from aplot_lightning.exit_codes import INTERRUPTED, TERMINATED
from aplot_lightning.files import replacing
from aplot_lightning.training.callbacks import MarginDiagnostics, Throughput
from aplot_lightning.training.checkpointing import FOLDER, LastCheckpoint, best_checkpoint, can_select, find_checkpoint
from aplot_lightning.training.distributed import check_averaging, check_strategy, prepare_strategy, suitable_precision
from aplot_lightning.training.frozen_backbone import SkipFrozenBackbone
from aplot_lightning.training.graceful_stop import EndWithValidation, GracefulStop, Interrupted
from aplot_lightning.training.log_filters import filter_logs
from aplot_lightning.training.module import RewardModelingModule
from aplot_lightning.training.run_directory import check_writable, lock_run, unlock_runs
from aplot_lightning.training.run_record import RunRecord
from aplot_lightning.training.trainer import RunTrainer

RUN_DIR_VARIABLE = "APLOT_RUN_DIR"  # tells ranks that Lightning launches the run directory of the first
WRITTEN = (FOLDER, "predictions", "plots", "diagnostics")  # folders of a run that --overwrite true replaces


class AplotParser(LightningArgumentParser):
    """Keeps paths in `data` as paths: jsonargparse would read a file of pairs as a config."""

    def add_class_arguments(self, theclass: type, *arguments: Any, **options: Any) -> list[str]:
        if theclass is PreferenceDataModule:
            options["sub_configs"] = False
        return super().add_class_arguments(theclass, *arguments, **options)


class AplotCLI(LightningCLI):
    """LightningCLI with a run directory: its arguments, loggers and callbacks, and its figures at the end.

    Args:
        subcommand: the only one that gets a parser, since each parser takes time to build.
    """

    def __init__(self, *arguments: Any, subcommand: str, **options: Any) -> None:
        self._asked = subcommand
        super().__init__(*arguments, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return {self._asked: LightningCLI.subcommands()[self._asked]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str | None, default=None, help="run directory [runs/EXPERIMENT/RUN]")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace a run that is in run_dir")
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=PositiveInt | None,
            default=None,
            help="optimizer steps between checkpoints, beside those after every validation",
        )
        parser.add_argument(
            "--checkpoint_keep",
            type=NonNegativeInt,
            default=1,
            help="checkpoints before last.ckpt that are kept beside it, as step-*.ckpt",
        )
        parser.add_argument(
            "--checkpoint_backbone",
            type=bool,
            default=True,
            help="false leaves a frozen backbone out of checkpoints: they are small, but not a whole model",
        )
        parser.add_argument("--report", type=bool, default=True, help="write report.md and its plots at the end")
        parser.add_argument("--init_from", type=str | None, default=None, help="a model whose weights start the run")
        parser.add_argument(
            "--monitor",
            type=str,
            default="validation/accuracy",
            help="metric that selects best.ckpt: of `validation` or of a set in data.ood_validation",
        )
        parser.link_arguments("init_from", "model.init_from")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.run_dir = self._find_run_dir(config)
        if config.get("ckpt_path"):
            config.ckpt_path = str(find_checkpoint(config.ckpt_path, self.run_dir, whole=config.checkpoint_backbone))
        if config.get("weights_only", True) is None:
            config.weights_only = True  # a checkpoint runs no code unless the user allows it
        self._check(config)

    def _find_run_dir(self, config: Any) -> Path:
        if launched_by_lightning():
            return Path(os.environ[RUN_DIR_VARIABLE])
        named = config.run_dir
        if named is None:
            if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", 1))) > 1:
                raise UserError("run_dir: name one: ranks of torchrun or SLURM would each choose their own")
            stems = [Path(str(path)).stem for path in config.get("config") or []]
            moment = datetime.now().strftime("%Y%m%d-%H%M%S")
            named = str(Path("runs", stems[0] if stems else "run", "-".join([*stems[1:], moment])))
        os.environ[RUN_DIR_VARIABLE] = named
        return Path(named)

    def _check(self, config: Any) -> None:
        check_writable(self.run_dir)
        check_strategy(config.trainer)
        if self.subcommand == "fit":
            best_checkpoint(self.run_dir, config.monitor)
            holds = list(self.run_dir.glob(f"{FOLDER}/*.ckpt"))
            if holds and not config.get("ckpt_path") and not config.overwrite and is_first_rank():
                raise UserError(
                    f"run_dir: {self.run_dir} already holds a run; resume it with --ckpt_path last, replace it with "
                    "--overwrite true, or name another --run_dir"
                )
        if config.trainer.accumulate_grad_batches != 1:
            raise UserError(
                "trainer.accumulate_grad_batches must stay 1: accumulation follows from data.batch_size and "
                "data.micro_batch_size"
            )

    def instantiate_classes(self) -> None:
        """Raises UserError for a value that a class refuses, such as a negative epsilon."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if "Does not validate" not in str(error):
                raise
            raise UserError(f"{self.subcommand}: {one_line(str(error))}") from error

    def instantiate_trainer(self, **options: Any) -> L.Trainer:
        # before the trainer prints and logs: a mistake in the data is one line and leaves nothing behind
        self._read_data()
        config = self.config[self.subcommand]
        given = self._get(self.config_init, "trainer")
        self.record = RunRecord(self.run_dir, config.as_dict(), self._config_text(), report=config.report)
        callbacks = [
            EndWithValidation(),  # before weight averaging in the list
            *(given.get("callbacks") or []),
            Throughput(),
            MarginDiagnostics(self.run_dir),
            GracefulStop(),
            self.record,
            *([] if config.checkpoint_backbone else [SkipFrozenBackbone()]),
        ]
        if self.subcommand == "fit":
            callbacks += [best_checkpoint(self.run_dir, config.monitor)] if self.selects else []
            callbacks.append(LastCheckpoint(self.run_dir, config.checkpoint_every_n_steps, int(config.checkpoint_keep)))
            self.trial = _trial_report(self.run_dir, config.monitor)
            callbacks += [self.trial] if self.trial is not None else []
        logger = given.get("logger")
        if logger is None or logger is True:
            logger = TensorBoardLogger(str(self.run_dir), name="", version="", default_hp_metric=False)
        options |= suitable_precision(given)
        try:
            trainer = super().instantiate_trainer(
                callbacks=callbacks, logger=logger, default_root_dir=str(self.run_dir), **options
            )
        except (MisconfigurationException, TypeError, ValueError) as error:  # Lightning refuses a value of trainer.*
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        prepare_strategy(trainer)
        check_averaging(trainer, self.model)
        return trainer

    def _config_text(self) -> str:
        """The whole config as YAML, without the paths of the checkpoint it resumed from and of config files."""
        config = self.config[self.subcommand].clone()
        for key in ("config", "ckpt_path", "overwrite"):
            config.pop(key, None)
        return self._parser(self.subcommand).dump(config, skip_none=False)

    def _read_data(self) -> None:
        self.datamodule.connect(self.model.data_requirements())
        self.datamodule.setup()
        if self.subcommand == "fit":
            self.model.require_columns(self.datamodule.columns)
            config = self.config[self.subcommand]
            validates = config.trainer.limit_val_batches != 0
            self.selects = validates and can_select(config.monitor, self.datamodule.evaluation_sets)
            if self.datamodule.stream is not None:
                _check_endless(config.trainer)

    def before_fit(self) -> None:
        config = self.config[self.subcommand]
        if self.trainer.is_global_zero:
            lock_run(self.run_dir)
        if config.overwrite and not config.get("ckpt_path"):
            self._clear()

    @rank_zero_only
    def _clear(self) -> None:
        """Removes the files of an earlier run, and no others."""
        for name in WRITTEN:
            shutil.rmtree(self.run_dir / name, ignore_errors=True)
        for events in self.run_dir.glob("events.out.tfevents.*"):
            events.unlink()

    def after_fit(self) -> None:
        """Evaluates the best checkpoint, which is the last one if nothing selects."""
        best = self.run_dir / FOLDER / "best.ckpt"
        last = self.run_dir / FOLDER / "last.ckpt"
        if self.trainer.is_global_zero and not (self.selects and best.exists()):
            with last.open("rb") as source, replacing(best, "wb", durable=True) as file:
                shutil.copyfileobj(source, file)
        self.trainer.strategy.barrier()
        if self.trial is not None:  # the study has its value; test sets are evaluated for the chosen trial only
            return
        # the callback would put the weights without averaging into the model under test
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, WeightAveraging)]
        if self.trainer.limit_val_batches == 0:
            if self.trainer.is_global_zero:
                self.record.write_figures(self.trainer, {})
        else:
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path=str(best), verbose=False, weights_only=True
            )
        self._print_table()

    def after_test(self) -> None:
        self._print_table()

    @rank_zero_only
    def _print_table(self) -> None:
        from aplot_lightning.evaluation.report import compare_runs, runs_text

        print(f"\n{runs_text(compare_runs([self.run_dir]))}")
        if self.record.report:
            print(f"\nreport: {self.run_dir / 'report.md'}")


def _trial_report(run_dir: Path, monitor: str) -> L.Callback | None:
    """The callback of a study's trial, or None. Other runs do not import what studies need."""
    if "APLOT_TRIAL" not in os.environ:
        return None
    from aplot_lightning.training.trial_report import TrialReport

    return TrialReport.from_environment(run_dir, monitor)


def _record_failure(error: Exception) -> None:
    """Tells the study whose trial this run is that it failed."""
    if "APLOT_TRIAL" in os.environ:
        from aplot_lightning.training.trial_report import record_failure

        record_failure(Path(os.environ.get(RUN_DIR_VARIABLE, "")), error)


def launched_by_lightning() -> bool:
    """Whether this process is a rank that the first one started with the run directory in its environment."""
    started = os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ
    return started and RUN_DIR_VARIABLE in os.environ


def is_first_rank() -> bool:
    """Whether this process is the first rank."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _check_endless(trainer: Any) -> None:
    """Raises UserError if a run on a stream would have no end, or no steps to validate after."""
    if trainer.max_steps < 1:
        raise UserError("data.train: a stream has no epochs: set --trainer.max_steps to the number of steps")
    if isinstance(trainer.val_check_interval, float) and trainer.val_check_interval != 1.0:
        raise UserError(
            f"trainer.val_check_interval is {trainer.val_check_interval}, a share of an epoch, and a stream has none: "
            "give a number of steps"
        )


def run(arguments: list[str], cli: type[AplotCLI] | None = None) -> int:
    """Runs one of Lightning's subcommands and returns the exit code. Raises UserError if jsonargparse refuses a value.

    Args:
        arguments: the subcommand's name and its own arguments.
        cli: the class that has the subcommand; AplotCLI by default.
    """
    # a progress bar belongs on a terminal, not in a log
    defaults = {
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": sys.stderr.isatty(),
    }
    filter_logs()
    # errors as exceptions; no abbreviated keys, so that mistyped ones are errors
    parsing = {"exit_on_error": False, "allow_abbrev": False}
    try:
        (cli or AplotCLI)(
            RewardModelingModule,
            PreferenceDataModule,
            parser_class=AplotParser,
            save_config_callback=None,
            trainer_class=RunTrainer,
            seed_everything_default=0,
            trainer_defaults=defaults,
            auto_configure_optimizers=False,
            parser_kwargs={**parsing, arguments[0]: parsing},
            subcommand=arguments[0],
            args=None if arguments == sys.argv[1:] else arguments,
        )
    except ArgumentError as error:
        raise UserError(one_line(str(error))) from error
    except SIGTERMException as stopped:
        # the first rank reports for those that it started; Lightning kills it if one of them ends with an error
        code = INTERRUPTED if isinstance(stopped, Interrupted) else TERMINATED
        return _leave(0 if launched_by_lightning() else code)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning leaves with 1
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        _record_failure(error)
        raise
    finally:
        unlock_runs()
    return _leave(0)


def _leave(code: int) -> int:
    """Returns the exit code; one of several ranks exits with it at once.

    Gloo's threads sometimes abort the interpreter's own exit. Launchers take that for a rank that died and kill the
    others, which may still be writing the run's figures. All files are closed by now.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
