"""Every file of conf/objective/ builds the objective that its name says, alone and after another file."""

from __future__ import annotations

import inspect

import pytest
import yaml
from jsonargparse import ArgumentError

from aplot_lightning import objectives
from aplot_lightning.objectives import Objective
from tests.shipped import CONF, NAMES, shipped

MADE = {
    "aplot": Objective(margin=objectives.TransportMargin()),
    "aplot_instance": Objective(margin=objectives.InstanceMargin()),
    "bt": Objective(),
    "constant": Objective(margin=objectives.ConstantMargin(0.173)),
    "label_smoothing": Objective(target=objectives.LabelSmoothing()),
    "margin": Objective(margin=objectives.ColumnMargin()),
    "aot": Objective(coupling=objectives.Sorted()),
    "beta": Objective(link=objectives.BetaLink()),
    "bsr": Objective(regularizers=[objectives.BatchSum()]),
    "centering": Objective(regularizers=[objectives.Centering()]),
    "fidelity": Objective(link=objectives.Fidelity()),
    "focal": Objective(link=objectives.Focal()),
    "grm_sft": Objective(regularizers=[objectives.Text()]),
    "hinge": Objective(link=objectives.Hinge()),
    "inform": Objective(regularizers=[objectives.InformationBottleneck()]),
    "mmpo": Objective(target=objectives.Quality()),
    "odin": Objective(regularizers=[objectives.LengthDecorrelation()]),
    "pcrm": Objective(regularizers=[objectives.PriorConstraint()]),
    "positive": Objective(regularizers=[objectives.Positive()]),
    "thurstone": Objective(link=objectives.Probit()),
    "ensemble": objectives.EnsembleObjective(),
    "more": Objective(weighting=objectives.MinNorm()),
    "normbt": Objective(weighting=objectives.Norm()),
    "selective": Objective(weighting=objectives.PartialTransport()),
}


def build(*arguments: str) -> Objective:
    return shipped(*arguments).objective


def config(name: str) -> str:
    return f"--config={CONF / name}.yaml"


def test_this_list_covers_every_file():
    assert sorted(MADE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_file_builds_the_objective_of_its_name(name):
    made, expected = build(config(name)), MADE[name]
    assert [type(component) for component in made.components] == [type(component) for component in expected.components]
    for component, other in zip(made.components, expected.components, strict=True):
        options = [
            option for option in inspect.signature(type(component)).parameters if option not in ("args", "kwargs")
        ]
        assert {option: getattr(component, option) for option in options} == {
            option: getattr(other, option) for option in options
        }


@pytest.mark.parametrize("earlier", ["aplot", "ensemble", "more", "odin"])
def test_a_later_file_replaces_an_earlier_one(earlier):
    for name in NAMES:
        assert build(config(earlier), config(name)).describe() == MADE[name].describe()


def test_a_later_file_undoes_changed_options():
    changed = ("--model.objective.margin.epsilon=0.5", "--model.objective.margin.detach=false")
    assert build(config("aplot"), *changed).margin.epsilon == 0.5
    again = build(config("aplot"), *changed, config("aplot")).margin
    assert (again.epsilon, again.detach) == (0.1, True)


@pytest.mark.parametrize("name", NAMES)
def test_file_lists_every_option_and_opens_with_its_command(name):
    text = (CONF / f"{name}.yaml").read_text()
    command = f"python -m aplot_lightning fit --config conf/quickstart.yaml --config conf/objective/{name}.yaml"
    assert text.startswith("# ")
    assert f"# Command: {command}\n" in text
    assert "# When to use it: " in text
    assert "# Source: " in text
    components = yaml.safe_load(text)["model"]["objective"]["init_args"]
    assert set(components) == set(inspect.signature(type(MADE[name])).parameters)
    regularizers = components.pop("regularizers", None) or []
    for component in [component for component in components.values() if component is not None] + regularizers:
        signature = inspect.signature(getattr(objectives, component["class_path"].rpartition(".")[2]))
        options = [option for option in signature.parameters if option not in ("args", "kwargs")]
        assert sorted(component.get("init_args", {})) == sorted(options)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("epsilon=-1", "epsilon must be a finite number above 0, got -1.0"),
        ("reading=row", "conditional.*mass.*diagonal.*total"),
        ("epsilom=1", "epsilom"),
    ],
)
def test_mistaken_options_are_argument_errors_that_name_the_option(key, message):
    with pytest.raises((ArgumentError, ValueError, TypeError), match=message):
        build(config("aplot"), f"--model.objective.margin.init_args.{key}")
