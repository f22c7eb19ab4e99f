"""What comes after the trials: real fits of the chosen config and of a baseline, with seeds that no trial had."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aplot_lightning.errors import RunError
from aplot_lightning.tuning.confirmation import _task
from aplot_lightning.tuning.fit_config import fit_configs
from aplot_lightning.tuning.grid import Cell, Setting
from aplot_lightning.tuning.selection import finish, fresh_seeds
from aplot_lightning.tuning.study import Baseline, Confirm, StudyConfig
from tests.conftest import Laboratory
from tests.tuning.hand import FACTOR, OBJECTIVES, complete, failed, hand_study, point, pruned, study_config

SHORT = {"trainer.max_steps": 4, "trainer.val_check_interval": 2}
GROUPS, SEEDS = ("bt", "chosen"), (6, 7)


@dataclass
class Finished:
    config: StudyConfig
    study: optuna.Study
    folder: Path
    report: str

    def run(self, group: str, seed: int) -> Path:
        return self.folder / "confirm" / group / f"seed{seed}"


@pytest.fixture(scope="module")
def finished(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A study of seed 5 whose best trial is its third; BT was a trial too, by hand."""
    folder = tmp_path_factory.mktemp("study")
    baselines = {"bt": Baseline(configs=[str(OBJECTIVES / "bt.yaml")])}
    config = study_config(
        folder, laboratory.config, first_seed=5, overrides=SHORT, baselines=baselines, confirm=Confirm(seeds=2)
    )
    trials = [complete(0.6, slot="baseline:bt"), complete(0.65), complete(0.9, share=0.75, factor=1.0), pruned(0.4)]
    study = hand_study(config, [*trials, failed("aplot: the loss is nan")])
    path = finish(config, study, workers=2)
    return Finished(config, study, folder, path.read_text(encoding="utf-8"))


def test_best_yaml_is_one_whole_config_of_the_best_trial(finished: Finished, laboratory: Laboratory) -> None:
    path = finished.folder / "best.yaml"
    arguments = ["--config", laboratory.config, "--config", str(OBJECTIVES / "aplot.yaml"), "--seed_everything", "5"]
    arguments += [
        "--model.objective.margin.similarity_weight",
        "0.75",
        "--model.objective.margin.reward_weight",
        "0.25",
    ]
    arguments += [f"--{FACTOR}", "1.0", "--model.learning_rate", "0.003"]
    arguments += [f"--{key}={value}" for key, value in SHORT.items()]
    expected, written = fit_configs([arguments, ["--config", str(path)]])
    assert written == expected
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# The best of study hand: trial 2, validation/accuracy 0.9000.\n# Trials: 3 complete, ")
    assert re.search(r"^# share: 0\.75$", text, re.MULTILINE)


def test_every_group_was_trained_with_every_fresh_seed_and_its_own_config(finished: Finished) -> None:
    for group, margin in (("bt", "NoMargin"), ("chosen", "TransportMargin")):
        for seed in SEEDS:
            config = yaml.safe_load((finished.run(group, seed) / "config.yaml").read_text())
            assert config["seed_everything"] == seed
            assert config["model"]["objective"]["init_args"]["margin"]["class_path"].endswith(margin)
            assert config["trainer"]["max_steps"] == 4


def test_test_sets_are_evaluated_at_the_end_only(finished: Finished) -> None:
    for group in GROUPS:
        run = finished.run(group, 6)
        tags = EventAccumulator(str(run)).Reload().Tags()["scalars"]
        assert "validation/accuracy" in tags
        assert not [tag for tag in tags if tag.startswith(("id/", "ood"))]
        assert {path.stem for path in (run / "predictions").iterdir()} == {"validation", "id", "hard", "style"}


def accuracies(finished: Finished, group: str, name: str) -> list[float]:
    """Of each seed, from the predictions."""
    found = []
    for seed in SEEDS:
        table = pq.read_table(finished.run(group, seed) / "predictions" / f"{name}.parquet").to_pydict()
        gaps = np.subtract(table["chosen_reward"], table["rejected_reward"])
        found.append(float(np.mean(gaps > 0)))
    return found


def cells(report: str, start: str) -> list[str]:
    line = next(line for line in report.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_holds_what_the_predictions_say(finished: Finished) -> None:
    means = {}
    for name in ("validation (selects)", "id", "hard", "style"):
        each = {group: np.mean(accuracies(finished, group, name.split()[0])) for group in GROUPS}
        means[name] = each
        _, bt, chosen, difference, _ = cells(finished.report, name)
        assert (bt[:5], chosen[:5]) == (f"{each['bt']:.3f}", f"{each['chosen']:.3f}")
        assert difference[:6] == f"{each['chosen'] - each['bt']:+.3f}"
    _, bt, chosen, *_ = cells(finished.report, "OOD mean")
    for said, group in ((bt, "bt"), (chosen, "chosen")):
        assert said[:5] == f"{(means['hard'][group] + means['style'][group]) / 2:.3f}"


def test_the_sentences_stand_first_and_tell_the_same_numbers(finished: Finished) -> None:
    body = finished.report.partition("## What it is worth")[2]
    gain, selection = re.findall(r"^\*\*(.*)\*\*$", body, re.MULTILINE)
    difference = cells(finished.report, "OOD mean")[3]
    assert re.match(r"With 2 fresh seeds, the gain over bt is (real|not shown|negative, a loss) on OOD mean ", gain)
    assert difference[:6] in gain
    fresh = {group: f"{np.mean(accuracies(finished, group, 'validation')):.3f}" for group in GROUPS}
    on_id = {group: f"{np.mean(accuracies(finished, group, 'id')):.3f}" for group in GROUPS}
    assert f"had a validation/accuracy of 0.900 and reaches {fresh['chosen']} with fresh seeds" in selection
    assert f"bt went from 0.600 to {fresh['bt']} (id accuracy {on_id['bt']})" in selection
    assert f"(id accuracy {on_id['chosen']})" in selection


def test_what_is_left_of_a_value_stands_beside_its_baselines(finished: Finished) -> None:
    values = accuracies(finished, "chosen", "validation")
    row = cells(finished.report, "chosen | 2")
    spread = f"{np.std(values, ddof=1):.3f}"
    assert row[:5] == [
        "chosen", "2", "0.900", f"{np.mean(values):.3f} (sd {spread})", f"{np.mean(values) - 0.9:+.3f}"
    ]  # fmt: skip
    assert cells(finished.report, "bt | 0")[2] == "0.600"


def test_all_of_the_comparison_is_beside_the_report(finished: Finished) -> None:
    assert (finished.folder / "confirmation.md").read_text().startswith("# Confirmation of study hand\n")
    assert "bt,6,id,accuracy," in (finished.folder / "confirmation.csv").read_text()
    assert "The seeds 6, 7" not in finished.report
    assert "trained with the seeds 6, 7, which no trial had" in finished.report


def test_a_run_that_was_cut_off_goes_on_and_those_that_are_done_are_left_alone(finished: Finished) -> None:
    cut_off = finished.run("chosen", 7)
    before = json.loads((cut_off / "metrics.json").read_text())
    others = [finished.run(group, seed) / "metrics.json" for group in GROUPS for seed in SEEDS][:-1]
    times = [path.stat().st_mtime_ns for path in others]
    mark = json.loads((cut_off / "cell.json").read_text())
    (cut_off / "cell.json").write_text(json.dumps({**mark, "state": "running"}))
    (cut_off / "metrics.json").unlink()
    report = finish(finished.config, finished.study)
    assert [path.stat().st_mtime_ns for path in others] == times
    after = json.loads((cut_off / "metrics.json").read_text())
    assert {name: after[name] for name in ("validation", "id", "ood")} == {
        name: before[name] for name in ("validation", "id", "ood")
    }
    assert "--ckpt_path" in json.loads((cut_off / "run.json").read_text())["command"]
    assert cells(report.read_text(), "chosen | 2") == cells(finished.report, "chosen | 2")


def test_a_run_of_another_config_is_removed_before_anything_could_go_on_from_it(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "cell.json").write_text(json.dumps({"state": "running", "digest": "another"}))
    task = _task(Cell(Setting(), "bt", 0, run, (Path(laboratory.config),), {}))
    assert task.state == "new"
    assert not run.exists()


def test_a_baseline_that_cannot_be_trained_is_one_line_and_the_others_are_kept(
    finished: Finished, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump({"model": {"backbone": str(tmp_path / "nowhere")}}))
    baselines = {**finished.config.baselines, "broken": Baseline(configs=[str(broken)])}
    config = study_config(
        finished.folder, finished.config.configs[0], first_seed=5, overrides=SHORT, baselines=baselines,
        confirm=Confirm(seeds=1),
    )  # fmt: skip
    with pytest.raises(RunError, match=r"^confirmation: broken seed 6 failed: .*nowhere.*run tune again") as caught:
        finish(config, finished.study)
    assert "\n" not in str(caught.value)


def test_a_baseline_whose_config_was_chosen_is_not_trained_twice(finished: Finished, laboratory: Laboratory) -> None:
    twin = Baseline(values=point(share=0.75, factor=1.0))
    config = study_config(
        finished.folder, laboratory.config, first_seed=5, overrides=SHORT,
        baselines={**finished.config.baselines, "twin": twin}, confirm=Confirm(seeds=1),
    )  # fmt: skip
    report = finish(config, finished.study).read_text()
    assert "**What was chosen is the config of twin itself: no other trial was better.**" in report
    assert cells(report, "chosen | 2")[3::2] == cells(report, "twin | -")[3::2]
    # the same config and seed as the run that stood under its own name
    one, other = (finished.run(group, 6) / "metrics.json" for group in ("twin", "chosen"))
    assert json.loads(one.read_text())["ood"] == json.loads(other.read_text())["ood"]
    assert "(2 runs, " in report


def test_seeds_are_fresh_also_where_the_space_searches_them(tmp_path: Path) -> None:
    config = study_config(tmp_path, first_seed=3, seeds=2)
    study = hand_study(config, [complete(0.5)])
    assert fresh_seeds(config, study, 3) == [5, 6, 7]
    space = {"seed_everything": {"int": [0, 9]}}
    config = study_config(tmp_path / "other", first_seed=3, seeds=2, space=space)
    trials = [
        optuna.trial.create_trial(
            value=0.5,
            params={"seed_everything": seed},
            distributions={"seed_everything": optuna.distributions.IntDistribution(0, 9)},
        )
        for seed in (6, 8)
    ]
    assert fresh_seeds(config, hand_study(config, trials), 3) == [5, 7, 9]


@pytest.mark.parametrize("confirm", [None, Confirm(seeds=0)], ids=["null", "0"])
def test_without_a_confirmation_the_report_says_that_the_value_is_optimistic(
    laboratory: Laboratory, tmp_path: Path, confirm: Confirm | None
) -> None:
    config = study_config(tmp_path, laboratory.config, confirm=confirm)
    report = finish(config, hand_study(config, [complete(0.5), complete(0.6)])).read_text()
    assert "Nothing was confirmed" in report
    assert "optimistic" in report
    assert not (tmp_path / "confirm").exists()
    assert "trial 1, validation/accuracy 0.6000" in report
    (best,) = fit_configs([["--config", str(tmp_path / "best.yaml")]])
    assert best["model"]["learning_rate"] == point()["model.learning_rate"]


def test_a_study_without_a_complete_trial_is_one_line(tmp_path: Path) -> None:
    config = study_config(tmp_path)
    study = hand_study(config, [pruned(0.4), failed("aplot: the loss is nan"), failed(None)])
    with pytest.raises(RunError) as caught:
        finish(config, study)
    assert str(caught.value) == (
        "study hand: none of its trials has a value (0 complete, 1 pruned, 1 failed, 1 cut off and tried again), so "
        f"there is nothing to choose; their logs are in {tmp_path}"
    )
    assert not (tmp_path / "best.yaml").exists()
