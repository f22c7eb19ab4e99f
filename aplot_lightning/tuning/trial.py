"""One trial = one child run of `fit` (one for each of its seeds): its config file, its words, and what it left."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.tuning.launch import Launcher
from aplot_lightning.tuning.overrides import look_up, nested
from aplot_lightning.tuning.slots import Claim
from aplot_lightning.tuning.study import StudyConfig

VARIABLE = "APLOT_TRIAL"  # tells a run of fit to which trial it reports; read by training/trial_report.py
VALUE_FILE = "value.json"
TRIES = 3  # of a child that only prints
LINES = 5  # of a failed run's log that are kept with its trial
# of a run whose own process, or another rank, was killed: nothing that its values could have brought about
LOST = re.compile(r"lost another rank|terminated with code -\d+")
OWN_END = re.compile(r"terminated with code \d+")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        value: the monitored metric, best over its validations; None where it did not end well.
        pruned: it was stopped early.
        failure: the last lines of its log, where it failed of itself.
        died: it was killed from outside.
    """

    value: float | None = None
    pruned: bool = False
    failure: str | None = None
    died: bool = False


class TrialRuns:
    """Writes the runs of a study's trials, and reads what they left.

    Args:
        config: the study.
        base: the whole config that they start from, as `read_base` tells it.
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
        """Writes the run's config file; the words of its command. Raises UserError where values cannot be reckoned."""
        keys: dict[str, Any] = {"report": False, "checkpoint_keep": 0, **lean_checkpoints(self.base)}
        keys |= {**self.config.overrides, **self.config.search_space.overrides(claim.values)}
        keys |= {"seed_everything": seed, "monitor": self.config.monitor}
        keys["data.watch_test_sets"] = False  # neither `id` nor OOD before everything is chosen
        run_dir = self.run_dir(claim, seed)
        file = run_dir / "trial.yaml"
        write_config(file, nested(keys, self.base))
        return [*fit_words([*self.config.configs, str(file)]), "--run_dir", str(run_dir)]

    def variables(self, claim: Claim, seed: int) -> dict[str, str]:
        """What tells the run where it reports. Only the first seed's does: pruning looks at that."""
        config = self.config
        told = {
            "location": config.location,
            "study": config.study,
            "direction": config.direction,
            "pruner": config.pruner,
            "number": claim.number,
            "report": seed == config.first_seed,
        }
        return {VARIABLE: json.dumps(told)}

    def outcome(self, claim: Claim, seed: int, code: int, log: Path) -> Outcome:
        """How the run ended, from its exit code and what it wrote."""
        if code != 0:
            return _unsuccessful(code, log)
        try:
            told = json.loads((self.run_dir(claim, seed) / VALUE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {"value": None, "pruned": False}
        value = told["value"]
        if value is None or not math.isfinite(value):
            return Outcome(failure=f"no validation has measured {self.config.monitor}; see {log}")
        return Outcome(float(value), told["pruned"])


def _unsuccessful(code: int, log: Path) -> Outcome:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()][-LINES:]
    said = "\n".join(lines)
    # Lightning kills the first rank where another ends in whatever way: its log tells in which
    killed = code < 0 or code in (137, 143)
    if (killed and not OWN_END.search(said)) or LOST.search(said):
        return Outcome(died=True)
    return Outcome(failure=f"{said[-1500:] or 'it said nothing'}\n(exit code {code}, {log})")


def shortened(failure: str) -> str:
    """A failure on one line: the last thing that the run said."""
    lines = failure.splitlines()
    said = lines[-2] if len(lines) > 1 and lines[-1].startswith("(exit code") else lines[-1]
    return said.removeprefix("aplot: ")[:300]


def write_config(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a config file. Raises RunError where the disk is full."""
    import yaml

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{path} could not be written ({error.strerror}); mend that and run the same command again"
        ) from error


def _not_written(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} could not be written ({error.strerror}); mend that and run the same command again")


def fit_words(configs: Sequence[str]) -> list[str]:
    """`fit` with these config files."""
    return ["fit", *(word for path in configs for word in ("--config", path))]


def read_base(config: StudyConfig, launcher: Launcher, configs: Sequence[str] = ()) -> dict[str, Any]:
    """The whole config of the study's base, read by `fit`'s own parser in a child.

    Args:
        config: the study, with its overrides.
        launcher: starts the child.
        configs: further files after the study's own.

    Raises:
        UserError: what `fit` refuses in them.
    """
    words = fit_words([*config.configs, *configs])
    for key, value in config.overrides.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return _printed(launcher, words)


def check_space(config: StudyConfig, launcher: Launcher, base: Mapping[str, Any]) -> None:
    """Has `fit`'s parser read points that name every searched key. Raises UserError for what it refuses."""
    space = config.search_space
    with tempfile.TemporaryDirectory() as folder:
        for values in space.samples():
            file = Path(folder, "trial.yaml")
            write_config(file, nested({**config.overrides, **space.overrides(values)}, base))
            try:
                _printed(launcher, fit_words([*config.configs, str(file)]))
            except UserError as error:
                raise UserError(f"space: {error}") from error


def check_monitored_set(config: StudyConfig, base: Mapping[str, Any]) -> None:
    """Raises UserError where the monitored set is none of the base config's."""
    stem = config.monitor.rpartition("/")[0]
    kind, _, name = stem.partition("/")
    there = dict(look_up("data.ood_validation", base) or {})
    if kind == "ood_validation" and name not in there:
        names = ", ".join(there) or "none"
        raise UserError(f"monitor: there is no set {name!r} in data.ood_validation of the base config (it has {names})")


def _printed(launcher: Launcher, words: Sequence[str]) -> dict[str, Any]:
    import yaml

    for _ in range(TRIES):  # it may be killed like any process
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log.txt")
            code = launcher.start([*words, "--print_config"], log=log).wait()
            said = log.read_text(encoding="utf-8", errors="replace")
        if code >= 0:
            break
    lines = [line for line in said.splitlines() if line.strip()] or [f"exit code {code}"]
    if code == 2:
        raise UserError(lines[-1].removeprefix("aplot: "))
    start = said.find("# lightning.pytorch")
    content = yaml.safe_load(said[max(0, start) :]) if code == 0 else None
    if not isinstance(content, dict):
        raise RunError(f"fit --print_config failed with exit code {code}: {lines[-1].removeprefix('aplot: ')}")
    return content


def baseline_points(
    config: StudyConfig, launcher: Launcher, base: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The baselines that are points of the space, by name, and for each other one a line that says why it is none."""
    points, notes = {}, []
    for name, baseline in config.baselines.items():
        own = read_base(config, launcher, baseline.configs) if baseline.configs else base
        try:
            points[name] = config.search_space.point(baseline.values, partial(look_up, config=own))
        except ValueError as error:
            notes.append(f"baseline {name} is no point of the space ({error}): it is not among the trials")
    return points, notes


def is_single_device(base: Mapping[str, Any]) -> bool:
    """Whether a run is one process, so that it may be forked from a preloaded one."""
    trainer = base.get("trainer", {})
    devices = trainer.get("devices")
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    return (one or (devices == "auto" and trainer.get("accelerator") == "cpu")) and trainer.get("num_nodes", 1) == 1


def lean_checkpoints(base: Mapping[str, Any]) -> dict[str, bool]:
    """Keys that keep a frozen backbone out of a run's checkpoints, where nothing in the run needs it in the file.

    Args:
        base: the run's whole config.
    """
    frozen = base.get("model", {}).get("freeze_backbone", False)
    plain = is_single_device(base) and not base["trainer"].get("callbacks")
    return {"checkpoint_backbone": False} if frozen and plain else {}
