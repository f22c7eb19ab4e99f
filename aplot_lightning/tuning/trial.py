"""One trial = one run of `fit` for each of its seeds: its config file, its arguments, and its result."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.tuning.config_keys import look_up, nested
from aplot_lightning.tuning.fit_config import config_arguments, fit_configs, lean_checkpoints, option_arguments
from aplot_lightning.tuning.storage import FAILURE_FILE, TRIAL_VARIABLE, VALUE_FILE
from aplot_lightning.tuning.study import StudyConfig
from aplot_lightning.tuning.trial_queue import Claim

LINES = 5  # of a failed run's log that are stored with its trial
KILLED = (137, 143)  # exit codes of a shell for SIGKILL and SIGTERM


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        value: the monitored metric, best over its validations; None if the run failed or died.
        pruned: it was stopped early.
        failure: the last lines of its log, if it failed.
        died: it, or one of its ranks, was killed; the values of the trial are not to blame.
    """

    value: float | None = None
    pruned: bool = False
    failure: str | None = None
    died: bool = False


class TrialRuns:
    """Writes the runs of a study's trials, and reads their results.

    Args:
        config: the study.
        base: the whole config that they start from, from `read_base`.
    """

    def __init__(self, config: StudyConfig, base: Mapping[str, Any]) -> None:
        self.config, self.base = config, base

    def folder(self, claim: Claim) -> Path:
        return self.config.folder / "trials" / f"{claim.number:04}"

    def run_dir(self, claim: Claim, seed: int) -> Path:
        """The trial's folder, or one in it for each of several seeds."""
        folder = self.folder(claim)
        return folder if self.config.seeds == 1 else folder / f"seed{seed}"

    def prepare(self, claim: Claim, seed: int) -> list[str]:
        """Writes the run's config file; returns its arguments.

        Raises:
            UserError: an expression of the space cannot be evaluated at these values.
            RunError: the file cannot be written.
        """
        keys: dict[str, Any] = {"report": False, "checkpoint_keep": 0, **lean_checkpoints(self.base)}
        keys |= {**self.config.overrides, **self.config.search_space.overrides(claim.values)}
        keys |= {"seed_everything": seed, "monitor": self.config.monitor}
        keys["data.watch_test_sets"] = False  # neither `id` nor OOD before everything is chosen
        run_dir = self.run_dir(claim, seed)
        path = run_dir / "trial.yaml"
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            for left in (VALUE_FILE, FAILURE_FILE):
                (run_dir / left).unlink(missing_ok=True)
            _write(path, nested(keys, self.base))
        except OSError as error:
            raise RunError(f"{path} could not be written ({error.strerror}); fix that and run tune again") from error
        return ["fit", *config_arguments([*self.config.configs, path]), "--run_dir", str(run_dir)]

    def environment(self, claim: Claim, seed: int) -> dict[str, str]:
        """Tells the run which trial it reports to. Only the first seed reports: pruning looks at that."""
        config = self.config
        trial = {
            "location": config.location,
            "study": config.study,
            "direction": config.direction,
            "pruner": config.pruner,
            "number": claim.number,
            "report": seed == config.first_seed,
        }
        return {TRIAL_VARIABLE: json.dumps(trial)}

    def outcome(self, claim: Claim, seed: int, code: int, log: Path) -> Outcome:
        """How the run ended, from its exit code and its files."""
        run_dir = self.run_dir(claim, seed)
        if code != 0:
            failure = _read_json(run_dir / FAILURE_FILE)
            # Lightning kills the first rank if another one ends, for whatever reason: the ranks themselves say why
            died = failure["lost_rank"] if failure else code < 0 or code in KILLED
            return Outcome(died=True) if died else Outcome(failure=_last_lines(log, code))
        result = _read_json(run_dir / VALUE_FILE) or {"value": None, "pruned": False}
        value = result["value"]
        if value is None or not math.isfinite(value):
            return Outcome(failure=f"no validation has measured {self.config.monitor}; see {log}")
        return Outcome(float(value), result["pruned"])


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _last_lines(log: Path, code: int) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()][-LINES:]
    return "\n".join([("\n".join(lines) or "it printed nothing")[-1500:], f"(exit code {code}, {log})"])


def shortened(failure: str) -> str:
    """A failure on one line: the last line that the run printed."""
    lines = failure.splitlines()
    last = lines[-2] if len(lines) > 1 and lines[-1].startswith("(exit code") else lines[-1]
    return last.removeprefix("aplot: ")[:300]


def read_base(config: StudyConfig) -> dict[str, Any]:
    """The whole config of the study's base. Raises UserError for what `fit` refuses in it."""
    (base,) = fit_configs([[*config_arguments(config.configs), *option_arguments(config.overrides)]])
    return base


def check_space(config: StudyConfig, base: Mapping[str, Any]) -> None:
    """Has `fit`'s parser read points that name every searched key. Raises UserError for what it refuses."""
    space = config.search_space
    with tempfile.TemporaryDirectory() as folder:
        arguments = []
        for number, values in enumerate(space.samples()):
            path = Path(folder, f"{number}.yaml")
            _write(path, nested({**config.overrides, **space.overrides(values)}, base))
            arguments.append(config_arguments([*config.configs, path]))
        try:
            list(fit_configs(arguments))
        except UserError as error:
            raise UserError(f"space: {error}") from error


def check_monitored_set(config: StudyConfig, base: Mapping[str, Any]) -> None:
    """Raises UserError if the base config does not have the monitored set."""
    stem = config.monitor.rpartition("/")[0]
    kind, _, name = stem.partition("/")
    sets = dict(look_up("data.ood_validation", base) or {})
    if kind == "ood_validation" and name not in sets:
        names = ", ".join(sets) or "none"
        raise UserError(f"monitor: there is no set {name!r} in data.ood_validation of the base config (it has {names})")


def baseline_points(config: StudyConfig, base: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The baselines that are points of the space, by name, and for each other one a line that says why it is not."""
    points, notes = {}, []
    fixed = option_arguments(config.overrides)
    own = {name: baseline.configs for name, baseline in config.baselines.items() if baseline.configs}
    read = fit_configs([[*config_arguments([*config.configs, *configs]), *fixed] for configs in own.values()])
    bases = dict(zip(own, read, strict=True)) if own else {}
    for name, baseline in config.baselines.items():
        try:
            look = partial(look_up, config=bases.get(name, base))
            points[name] = config.search_space.point(baseline.values, look)
        except ValueError as error:
            notes.append(f"baseline {name} is not a point of the space ({error}): it is not among the trials")
    return points, notes
