"""Optuna's plots of a study, and its trials on TensorBoard's HParams page, read back by TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pytest
from optuna.trial import FrozenTrial
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from aplot_lightning.tuning.study_plots import draw_study, short_names, write_hyperparameters
from tests.tuning.hand import FACTOR, complete, failed, hand_study, many, point, pruned, study_config

PLOTS = ["history", "importance", "slice", "contour"]


def drawn(folder: Path, trials: list[FrozenTrial]) -> dict[str, str]:
    study = hand_study(study_config(folder), trials)
    return draw_study(study, "validation/accuracy", folder / "plots")


def test_a_study_of_many_trials_gets_every_plot_and_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    lines = drawn(tmp_path, many(12))
    assert lines == {name: f"![{name}](plots/{name}.png)" for name in PLOTS}
    for name in PLOTS:
        with Image.open(tmp_path / "plots" / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_what_cannot_be_drawn_is_left_out_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "contour.png").write_bytes(b"of an earlier report")
    lines = drawn(tmp_path, [complete(0.6)])
    assert lines["history"] == "![history](plots/history.png)"
    for name in PLOTS[1:]:
        assert lines[name] == f"No {name} plot: no parameter took two values."
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["history.png"]


@pytest.mark.parametrize(
    ("trials", "name", "reason"),
    [
        (many(5), "importance", "too few trials: 5 complete of the 10 that it needs"),
        ([complete(0.5, share=k / 12) for k in range(12)], "contour", "one parameter alone cannot be weighed"),
        (
            [complete(0.5, share=k / 12, learning_rate=k / 1e4 + 1e-3) for k in range(12)],
            "importance",
            "the same value",
        ),
    ],
    ids=["few", "one parameter", "one value"],
)
def test_a_plot_that_would_say_nothing_is_not_drawn(
    tmp_path: Path, trials: list[FrozenTrial], name: str, reason: str
) -> None:
    lines = drawn(tmp_path, trials)
    assert lines[name].startswith(f"No {name} plot: ")
    assert reason in lines[name]
    assert not (tmp_path / "plots" / f"{name}.png").exists()
    assert (tmp_path / "plots" / "slice.png").exists()


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["model.objective.init_args.margin.init_args.factor", "model.lr", "data.lr", "share"]) == {
        "model.objective.init_args.margin.init_args.factor": "factor",
        "model.lr": "model.lr",
        "data.lr": "data.lr",
        "share": "share",
    }


def test_tensorboard_reads_a_run_for_each_trial_with_a_value(tmp_path: Path) -> None:
    trials = [complete(0.625), complete(0.75, share=0.5), pruned(0.4, 0.375), failed("nan"), failed(None)]
    study = hand_study(study_config(tmp_path), trials)
    folder = tmp_path / "hparams"
    (folder / "trial-0099").mkdir(parents=True)  # of an earlier report
    assert write_hyperparameters(study, "validation/accuracy", folder) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["trial-0000", "trial-0001", "trial-0002"]
    assert read(folder / "trial-0000") == ({**point(), "state": "complete"}, 0.625)
    assert read(folder / "trial-0001") == ({**point(share=0.5), "state": "complete"}, 0.75)
    assert read(folder / "trial-0002") == ({**point(share=0.75), "state": "pruned"}, 0.375)


def read(run: Path) -> tuple[dict[str, Any], float]:
    """Hyperparameters and value of a run, as TensorBoard's plugin reads them."""
    events = EventAccumulator(str(run)).Reload()
    contents = events.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(contents["_hparams_/session_start_info"])
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    experiment = metadata.parse_experiment_plugin_data(contents["_hparams_/experiment"])
    assert [metric.name.tag for metric in experiment.metric_infos] == ["validation/accuracy"]
    return values, events.Scalars("validation/accuracy")[-1].value


def test_the_hyperparameters_keep_their_types(tmp_path: Path) -> None:
    study = hand_study(study_config(tmp_path), [complete(0.5, factor=1.0)])
    write_hyperparameters(study, "validation/accuracy", tmp_path / "hparams")
    values, _ = read(tmp_path / "hparams" / "trial-0000")
    assert values[FACTOR] == 1.0
    assert isinstance(values["share"], float)
