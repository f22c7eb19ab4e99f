"""Pictures of a study by Optuna's own plots, and its trials as a hyperparameters page of TensorBoard."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.evaluation.report.tables import escape, one_line

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure

IMPORTANCE_TRIALS = 10  # fewer leave less than one trial above PED-ANOVA's quantile of the best
CONTOUR_PARAMETERS = 4  # a grid of more is too small to read


def draw_study(study: optuna.Study, value_name: str, folder: Path) -> dict[str, str]:
    """Draws history, importance, slice and contour as PNG files into `folder`, without those that say nothing.

    Args:
        study: with at least one complete trial.
        value_name: what the trials' value is, for the axes.
        folder: of the files; made if it is not there.

    Returns:
        For each plot a line of Markdown: the picture, or why there is none.
    """
    from optuna.visualization import matplotlib as plots

    trials = complete_trials(study)
    varied = _varied(trials)
    too_few = f"too few trials: {len(trials)} complete of the {IMPORTANCE_TRIALS} that it needs"
    one_value = "no parameter took two values"
    one_parameter = "one parameter alone cannot be weighed against another, nor drawn over another"
    evaluator: dict[str, Any] = {}
    refusals = {
        "history": None,
        "importance": too_few if len(trials) < IMPORTANCE_TRIALS else _same_value(trials),
        "slice": None if varied else one_value,
        "contour": _same_value(trials),
    }
    if len(varied) < 2:
        refusals |= dict.fromkeys(("importance", "contour"), one_parameter if varied else one_value)
    if refusals["importance"] is None:
        from optuna.importance import PedAnovaImportanceEvaluator

        evaluator = {"evaluator": PedAnovaImportanceEvaluator()}
    chosen = _most_important(study, varied, evaluator)[:CONTOUR_PARAMETERS]
    named: dict[str, Any] = {"target_name": value_name}
    draw: dict[str, Callable[[], Any]] = {
        "history": lambda: plots.plot_optimization_history(study, **named),
        "importance": lambda: plots.plot_param_importances(study, params=varied, **evaluator, **named),
        "slice": lambda: plots.plot_slice(study, params=varied, **named),
        "contour": lambda: plots.plot_contour(study, params=chosen, **named),
    }
    across = {"slice": len(varied), "contour": len(chosen)}
    folder.mkdir(parents=True, exist_ok=True)
    lines = {}
    for name, refusal in refusals.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # of an earlier report
        if refusal is None:
            refusal = _draw(draw[name], path, short_names(varied), across.get(name, 1), square=name == "contour")
        lines[name] = f"No {name} plot: {escape(refusal)}." if refusal else f"![{name}]({folder.name}/{name}.png)"
    return lines


def complete_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that ended with a value."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def short_names(parameters: Sequence[str]) -> dict[str, str]:
    """For each parameter its last parts, as many as it takes to tell it from the others."""
    parts = {name: [part for part in name.split(".") if part != "init_args"] for name in parameters}
    names = {}
    for name, own in parts.items():
        count = 1
        others = [other for key, other in parts.items() if key != name]
        while count < len(own) and any(other[-count:] == own[-count:] for other in others):
            count += 1
        names[name] = ".".join(own[-count:])
    return names


def _varied(trials: Sequence[optuna.trial.FrozenTrial]) -> list[str]:
    """The parameters with two values or more, in the order in which trials name them."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(repr(value))
    return [name for name, each in values.items() if len(each) > 1]


def _same_value(trials: Sequence[optuna.trial.FrozenTrial]) -> str | None:
    return "every trial has the same value" if len({trial.value for trial in trials}) == 1 else None


def _most_important(study: optuna.Study, parameters: list[str], evaluator: dict[str, Any]) -> list[str]:
    """The parameters, the most important first where that can be known."""
    if not evaluator:
        return parameters
    from optuna.importance import get_param_importances

    with _quiet():
        found = get_param_importances(study, params=parameters, **evaluator)
    return sorted(parameters, key=lambda name: -found.get(name, 0.0))


def _draw(draw: Callable[[], Any], path: Path, names: dict[str, str], across: int, *, square: bool) -> str | None:
    """Draws one plot into a file; returns why it could not be drawn, None where it was."""
    from matplotlib import pyplot

    with _quiet(), _own_pyplot():
        try:
            draw()
        except (ValueError, RuntimeError, TypeError) as error:  # of a study whose trials lie so that it cannot
            return one_line(error)
        figure = pyplot.gcf()
        figure.set_size_inches(max(7.0, 2.9 * across), max(4.2, 2.6 * across) if square else 4.2)
        _shorten_labels(figure, names)
        figure.savefig(path, dpi=120, bbox_inches="tight")
    return None


def _shorten_labels(figure: Figure, names: dict[str, str]) -> None:
    """Whole config keys as labels cover each other."""
    for axes in figure.axes:
        axes.set_xlabel(names.get(axes.get_xlabel(), axes.get_xlabel()))
        axes.set_ylabel(names.get(axes.get_ylabel(), axes.get_ylabel()))
        ticks = [label.get_text() for label in axes.get_yticklabels()]
        if any(tick in names for tick in ticks):
            axes.set_yticks(axes.get_yticks(), [names.get(tick, tick) for tick in ticks])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's and Matplotlib's remarks on how few trials there are, and that plots are experimental."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def _own_pyplot() -> Iterator[None]:
    """Optuna draws by pyplot and changes its style: without a window, and with the caller's settings restored."""
    import matplotlib
    from matplotlib import pyplot

    before = set(pyplot.get_fignums())
    with matplotlib.rc_context():  # restores the style; the backend is not part of it
        backend = matplotlib.get_backend()
        pyplot.switch_backend("agg")
        try:
            yield
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
            pyplot.switch_backend(backend)


def write_hyperparameters(study: optuna.Study, value_name: str, folder: Path) -> int:
    """Writes a TensorBoard run for each trial that has a value: its parameters with that value on the HParams page.

    A pruned trial's value is its last report. What `folder` held before is replaced.

    Returns:
        How many runs there are.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    shutil.rmtree(folder, ignore_errors=True)
    written = 0
    for trial in study.get_trials(deepcopy=False):
        value = _last_value(trial)
        if value is None:
            continue
        parameters = {name: _plain(each) for name, each in trial.params.items()} | {"state": trial.state.name.lower()}
        with SummaryWriter(str(folder / f"trial-{trial.number:04}")) as writer:
            for summary in hparams(parameters, {value_name: value}):
                writer.file_writer.add_summary(summary)
            writer.add_scalar(value_name, value)
        written += 1
    return written


def _last_value(trial: optuna.trial.FrozenTrial) -> float | None:
    from optuna.trial import TrialState

    if trial.state is TrialState.COMPLETE:
        return trial.value
    if trial.state is TrialState.PRUNED and trial.intermediate_values:
        return trial.intermediate_values[max(trial.intermediate_values)]
    return None


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
