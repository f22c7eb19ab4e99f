"""Files of a run: its config, circumstances, figures, predictions, worst errors and report."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from aplot_lightning.evaluation.metrics import ood_mean, summarise_set
from aplot_lightning.evaluation.report import write_run_report
from aplot_lightning.files import replacing, write_text
from aplot_lightning.training.callbacks import Throughput

PACKAGES = ("aplot-lightning", "torch", "lightning", "transformers", "pot", "torchmetrics", "datasets")
WORST_ERRORS = 20
STATUS = Path("/proc/self/status")


class RunRecord(L.Callback):
    """Writes the files of a run directory (docs/interface.md): at the start the circumstances, at the end the results.

    Args:
        run_dir: the run directory; made when training starts, so that a mistake in the data leaves nothing behind.
        config: the whole config, for `config.yaml` and the hyperparameters page.
        config_text: the same as YAML.
        report: writes report.md and its plots at the end.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any], config_text: str, *, report: bool = True) -> None:
        self.run_dir = run_dir
        self.config = config
        self.config_text = config_text
        self.report = report
        self.training: dict[str, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_text(self.run_dir / "config.yaml", self.config_text)
        data = trainer.datamodule  # type: ignore[attr-defined]
        data.report.write(self.run_dir)
        if sys.stderr.isatty():  # one line per set
            sys.stderr.write("".join(f"{line}\n" for line in data.report.summary()))
        _write_json(self.run_dir / "run.json", _circumstances(trainer, module))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(_charts(data.evaluation_sets))
                logger.experiment.add_text("data/report", data.report.to_markdown(), global_step=0)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
        memory = peak_memory_mib(trainer.strategy.root_device)
        self.training = {**throughput.summary(), "peak_memory_mib": memory}
        report = trainer.datamodule.report  # type: ignore[attr-defined]
        if report.stream is not None and trainer.is_global_zero:
            report.write(self.run_dir)  # with what was read of the stream

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Takes the restored figures of a run that was killed after its last step: it has nothing left to train."""
        throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
        if self.training is None and not (self.run_dir / "metrics.json").exists():
            self.training = throughput.summary()

    def on_test_end(self, trainer: L.Trainer, module: Any) -> None:
        tables = module.predictions()  # gathered, so every rank takes part
        if trainer.is_global_zero:
            self.write_figures(trainer, tables)

    def write_figures(self, trainer: L.Trainer, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Writes predictions, worst errors, metrics.json and the report; without tables all accuracies are null."""
        sets = trainer.datamodule.evaluation_sets  # type: ignore[attr-defined]
        figures: dict[str, Any] = {"id": summarise_set(None), "ood": {}}
        errors: list[dict[str, Any]] = []
        for stem, evaluation_set in sets.items():
            kind, _, name = stem.partition("/")
            table, subsets = tables.get(stem), None
            if table is not None:
                path = self.run_dir / "predictions" / f"{name or kind}.parquet"
                subsets = evaluation_set.write_predictions(path, table)
                errors += evaluation_set.worst_errors(table, WORST_ERRORS)
            summary = summarise_set(table, subsets if name else None)
            if name:
                figures.setdefault(kind, {})[name] = summary
            else:
                figures[kind] = summary
        figures["ood_mean"] = {"accuracy": ood_mean(figures["ood"])}
        figures["train"] = self._training_figures(trainer)
        _write_json(self.run_dir / "metrics.json", figures)
        errors.sort(key=lambda error: -abs(error["chosen_reward"] - error["rejected_reward"]))
        with replacing(self.run_dir / "errors.jsonl") as file:
            file.writelines(json.dumps(error, ensure_ascii=False) + "\n" for error in errors[:WORST_ERRORS])
        self._log_hyperparameters(trainer, figures)
        if self.report:
            write_run_report(self.run_dir)

    def _training_figures(self, trainer: L.Trainer) -> dict[str, Any] | None:
        """The figures of this process's training, else those of the run or of its checkpoint."""
        existing = self.run_dir / "metrics.json"
        if self.training is None and existing.is_file():
            return json.loads(existing.read_text(encoding="utf-8")).get("train")
        throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
        if self.training is None and throughput is not None and throughput.counts["steps"]:
            return throughput.summary()  # the run was killed between its last step and its figures
        return self.training

    def _log_hyperparameters(self, trainer: L.Trainer, figures: Mapping[str, Any]) -> None:
        finals = {
            "final/validation_accuracy": figures.get("validation", {}).get("accuracy"),
            "final/id_accuracy": figures["id"]["accuracy"],
            "final/ood_mean_accuracy": figures["ood_mean"]["accuracy"],
        }
        chosen = {
            key: value for key, value in _flat(self.config).items() if key.startswith(("model.", "data.", "seed"))
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(chosen, {name: value for name, value in finals.items() if value is not None})
                logger.save()


def _charts(sets: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """A custom-scalars page with ID and OOD in one chart, for accuracy and other metrics in which they differ."""
    stems = [*sets, "ood_mean"] if any(stem.startswith("ood/") for stem in sets) else list(sets)
    page = {"accuracy": ["Multiline", [f"{stem}/accuracy" for stem in stems]]}
    for metric in ("mean_gap", "ece", "hard_accuracy", "length_correlation"):
        page[metric] = ["Multiline", [f"{stem}/{metric}" for stem in sets]]
    return {"ID beside OOD": page}


def _circumstances(trainer: L.Trainer, module: Any) -> dict[str, Any]:
    device = trainer.strategy.root_device
    return {
        "command": _command(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": {
            "host": platform.node(),
            "system": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "ranks": trainer.world_size,
        },
        "objective": module.objective.describe(),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "data": trainer.datamodule.fingerprints,  # type: ignore[attr-defined]
    }


def _command() -> list[str]:
    """The command as a user would type it again."""
    program = Path(sys.argv[0])
    start = ["python", "-m", "aplot_lightning"] if program.name == "__main__.py" else [program.name]
    return [*start, *sys.argv[1:]]


def _git_commit() -> str | None:
    """The commit of the running code, with `+` if the work tree differs; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            # plain types: the hyperparameters page would show jsonargparse's own numbers as text
            for kind in (bool, int, float, str):
                if isinstance(value, kind):
                    flat[f"{prefix}{key}"] = kind(value)
                    break
    return flat


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def peak_memory_mib(device: torch.device) -> float | None:
    """The most that this process has held so far, in MiB: tensors on a CUDA device, or else its resident memory.

    None on a CPU under systems other than Linux. getrusage's ru_maxrss exists elsewhere too, but a program inherits it
    from the process that started it: a small run in a large study would look large.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu" or not STATUS.is_file():
        return None
    kibibytes = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="utf-8", errors="replace"))
    return int(kibibytes[1]) / 1024 if kibibytes else None
