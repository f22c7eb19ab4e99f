"""A search space over config keys, read from YAML.

space:
  share: # a name of its own, which sets keys
    float: [0.0, 1.0]
    sets: {model.objective.margin.similarity_weight: share, model.objective.margin.reward_weight: 1 - share}
  model.learning_rate: {float: [1.0e-4, 1.0e-2], log: true} # a config key, which sets itself
  model.objective.margin.reading: {categorical: [conditional, mass]}
  data.batch_size: {int: [16, 64], step: 16, when: {model.objective.margin.reading: conditional}}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.expressions import Expression

if TYPE_CHECKING:
    import optuna

KINDS = ("float", "int", "categorical")
OPTIONS = {"float": ("log", "step"), "int": ("log", "step"), "categorical": ()}
SHOWN = "{float: [low, high]}, {int: [low, high]} or {categorical: [a, b]}, with log, step, sets, when beside it"


@dataclass(frozen=True)
class Parameter:
    """One searched value: a range (`low`, `high`, `log`, `step`) or `choices`, what it sets, and when it is there."""

    name: str
    kind: str
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    sets: Mapping[str, Expression] = field(default_factory=dict)
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def is_active(self, values: Mapping[str, Any]) -> bool:
        """Whether the parameters before it have the values that it asks for."""
        return all(name in values and values[name] in wanted for name, wanted in self.when.items())

    def suggest(self, trial: optuna.trial.Trial) -> Any:
        if self.kind == "categorical":
            return trial.suggest_categorical(self.name, self.choices)
        if self.kind == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return trial.suggest_float(self.name, self.low, self.high, log=self.log, step=self.step)

    @property
    def first(self) -> Any:
        """One of its values."""
        return self.choices[0] if self.kind == "categorical" else self.low

    def points(self) -> list[Any]:
        """The values that a grid tries. Raises UserError for a range without steps."""
        if self.kind == "categorical":
            return list(self.choices)
        if self.step is None and self.kind == "float":
            raise UserError(f"space.{self.name}: a grid needs steps: add step, or write categorical: [...]")
        step, slack = self.step or 1, 1e-9 * max(1.0, abs(self.high))
        values = takewhile(lambda value: value <= self.high + slack, (self.low + i * step for i in count()))
        return [int(value) if self.kind == "int" else float(f"{value:.12g}") for value in values]

    def problem(self, value: Any) -> str | None:
        """Why a value is none of this parameter's, None where it is one."""
        if self.kind == "categorical":
            return None if value in self.choices else f"{value!r} is none of {list(self.choices)}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{value!r} is no number"
        if not self.low <= value <= self.high:
            return f"{value!r} is outside [{self.low}, {self.high}]"
        if self.step is not None and not any(math.isclose(value, point, abs_tol=1e-9) for point in self.points()):
            return f"{value!r} is off the steps of {self.step} from {self.low}"
        return None


class SearchSpace:
    """The parameters of a study in the order in which they are drawn."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)

    @classmethod
    def parse(cls, space: Mapping[str, Any]) -> SearchSpace:
        """Reads the `space` of a study's YAML. Raises UserError, in one line, for what it cannot mean."""
        if not space:
            raise UserError("space: nothing is searched; name at least one key, as model.learning_rate")
        parameters: dict[str, Parameter] = {}
        for name, options in space.items():
            parameters[str(name)] = _parameter(str(name), options, parameters)
        for parameter in parameters.values():
            for key, expression in parameter.sets.items():
                unknown = sorted(expression.names - set(parameters))
                if unknown:
                    raise UserError(f"space.{parameter.name}.sets.{key}: there is no parameter {unknown[0]!r}")
        found = cls(parameters)
        keys = found.keys
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice:
            raise UserError(f"space: {twice} is set twice")
        return found

    @property
    def keys(self) -> list[str]:
        """The config keys that it may set."""
        return [key for name, parameter in self.parameters.items() for key in (parameter.sets or [name])]

    @property
    def is_conditional(self) -> bool:
        return any(parameter.when for parameter in self.parameters.values())

    def suggest(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        """A trial's values by parameter, those that its other values ask for."""
        return self._drawn(lambda parameter: parameter.suggest(trial))

    def _drawn(self, draw: Callable[[Parameter], Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.is_active(values):
                values[name] = draw(parameter)
        return values

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The config keys that these values set. Raises UserError where an expression cannot be reckoned."""
        found: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if name not in values:
                continue
            for key, expression in parameter.sets.items():
                missing = sorted(expression.names - set(values))
                if missing:
                    raise UserError(f"{expression.where}: {missing[0]} has no value here; give both the same `when`")
                found[key] = expression(values)
            if not parameter.sets:
                found[name] = values[name]
        return found

    def samples(self) -> list[dict[str, Any]]:
        """Few points that name every parameter between them."""
        samples: list[dict[str, Any]] = []
        for wanted, parameter in self.parameters.items():
            if any(wanted in values for values in samples):
                continue
            samples.append(self._with(self._needed(parameter)))
        return samples

    def _with(self, needed: Mapping[str, Any]) -> dict[str, Any]:
        return self._drawn(lambda each: needed.get(each.name, each.first))

    def _needed(self, parameter: Parameter) -> dict[str, Any]:
        """The values of other parameters with which this one is there."""
        needed: dict[str, Any] = {}
        for name, values in parameter.when.items():
            needed |= {**self._needed(self.parameters[name]), name: values[0]}
        return needed

    def grid(self) -> list[dict[str, Any]]:
        """Every point, each once, the last parameter the fastest."""
        return list(self._grid(list(self.parameters.values()), {}))

    def _grid(self, left: list[Parameter], values: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not left:
            yield values
        elif not left[0].is_active(values):
            yield from self._grid(left[1:], values)
        else:
            for value in left[0].points():
                yield from self._grid(left[1:], {**values, left[0].name: value})

    def check_grid(self) -> None:
        """Raises UserError where a parameter has no steps."""
        for parameter in self.parameters.values():
            parameter.points()

    def check_names(self, values: Mapping[str, Any], where: str) -> None:
        """Raises UserError for a name that there is not, or a value that is none of its parameter's."""
        for name, value in values.items():
            if name not in self.parameters:
                raise UserError(f"{where}: the space has no {name!r}, only {', '.join(self.parameters)}")
            problem = self.parameters[name].problem(value)
            if problem:
                raise UserError(f"{where}.{name}: {problem}")

    def point(self, given: Mapping[str, Any], look_up: Callable[[str], Any]) -> dict[str, Any]:
        """The point of the space that a config is.

        Args:
            given: values that are known.
            look_up: from a config key to the config's value; raises KeyError where it has none.

        Raises:
            ValueError: the config is none; the message says why.
        """

        def read(parameter: Parameter) -> Any:
            if parameter.name in given:
                return given[parameter.name]
            keys = [key for key, expression in parameter.sets.items() if expression.text == parameter.name]
            key = parameter.name if not parameter.sets else next(iter(keys), None)
            try:
                value = look_up(key) if key else None
            except KeyError:
                value = None
            problem = parameter.problem(value)
            if problem:
                raise ValueError(f"{parameter.name}: {problem}" if key else f"{parameter.name} cannot be read back")
            return value

        values = self._drawn(read)
        for key, value in self.overrides(values).items():
            own = next(name for name, each in self.parameters.items() if key in (each.sets or [name]))
            if own not in given and not _equal(value, look_up(key)):
                raise ValueError(f"{key} is {look_up(key)!r}, and {value!r} at this point")
        return values


def same_point(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two points have the same parameters with the same values, but for rounding."""
    return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())


def _equal(one: Any, other: Any) -> bool:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) if numbers else bool(one == other)


def _parameter(name: str, options: Any, before: Mapping[str, Parameter]) -> Parameter:
    where = f"space.{name}"
    if not isinstance(options, dict):
        raise UserError(f"{where}: {options!r} is no parameter; write {SHOWN}")
    kinds = [kind for kind in KINDS if kind in options]
    if len(kinds) != 1:
        raise UserError(f"{where}: name one of {', '.join(KINDS)}: {SHOWN}")
    kind = kinds[0]
    known = (kind, "sets", "when", *OPTIONS[kind])
    unknown = [str(key) for key in options if key not in known]
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r} of a {kind}; there are {', '.join(known)}")
    bounds = {} if kind == "categorical" else _range(where, kind, options)
    return Parameter(
        name,
        kind,
        **bounds,
        choices=_choices(where, options[kind]) if kind == "categorical" else (),
        sets=_sets(where, options.get("sets", {})),
        when=_when(where, options.get("when", {}), before),
    )


def _range(where: str, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    bounds, log, step = options[kind], options.get("log", False), options.get("step")
    if not (isinstance(bounds, list) and len(bounds) == 2 and all(_is_number(bound, kind) for bound in bounds)):
        raise UserError(f"{where}: {bounds!r} is no range of {kind}: write {kind}: [low, high] (1.0e-4, not 1e-4)")
    low, high = bounds
    if not isinstance(log, bool):
        raise UserError(f"{where}.log: {log!r} is neither true nor false")
    if low > high or (log and low <= 0):
        wanted = "a low above 0 for log" if low <= high else "the lower value first"
        raise UserError(f"{where}: [{low}, {high}] is no range: {wanted}")
    if step is not None and (not _is_number(step, kind) or step <= 0 or log):
        raise UserError(f"{where}.step: {step!r}: a {kind} above 0, and not with log")
    return {"low": low, "high": high, "log": log, "step": step}


def _is_number(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) if kind == "int" else math.isfinite(value)


def _choices(where: str, choices: Any) -> tuple[Any, ...]:
    if not isinstance(choices, list) or not choices:
        raise UserError(f"{where}: categorical takes a list of values, such as [a, b]")
    odd = [choice for choice in choices if not isinstance(choice, (str, int, float, bool, type(None)))]
    if odd:
        raise UserError(f"{where}: {odd[0]!r} is no single value; a choice is a text, a number, true, false or null")
    if len({repr(choice) for choice in choices}) < len(choices):
        raise UserError(f"{where}: a choice stands twice in {choices}")
    return tuple(choices)


def _sets(where: str, sets: Any) -> dict[str, Expression]:
    if not isinstance(sets, dict):
        raise UserError(f"{where}.sets: {sets!r}: write {{key: expression}}, such as {{model.dropout: 1 - keep}}")
    for key, text in sets.items():
        if isinstance(text, bool) or not isinstance(text, (str, int, float)):
            raise UserError(f"{where}.sets.{key}: {text!r} is no arithmetic; write such as 1 - share")
    return {str(key): Expression(text, f"{where}.sets.{key}") for key, text in sets.items()}


def _when(where: str, when: Any, before: Mapping[str, Parameter]) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, dict):
        raise UserError(f"{where}.when: {when!r}: write {{other: value}} or {{other: [value, value]}}")
    found = {}
    for other, values in when.items():
        if other not in before:
            raise UserError(f"{where}.when: there is no parameter {other!r} before it")
        found[str(other)] = tuple(values) if isinstance(values, list) else (values,)
        problems = filter(None, map(before[other].problem, found[str(other)]))
        if problem := next(problems, None):
            raise UserError(f"{where}.when.{other}: {problem}")
    return found
