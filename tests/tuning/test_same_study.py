from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.tuning.same_study import check_same_study
from aplot_lightning.tuning.storage import open_study
from aplot_lightning.tuning.study import read_study
from tests.tuning.studies import STORAGES, location, study_file

BASE = {"model": {"objective": {"class_path": "O", "init_args": {"factor": 1.0}}}, "data": {"ood": None}}


def check(folder: Path, storage: str, base: dict[str, Any], **keys: Any) -> None:
    config = read_study(study_file(folder, storage=storage, **keys))
    study, _ = open_study(config.location, config.study, direction="maximize")
    check_same_study(config, study, base)


@pytest.mark.parametrize("kind", STORAGES)
def test_a_study_of_another_space_is_refused_and_more_trials_are_not(kind: str, tmp_path: Path) -> None:
    storage = location(kind, tmp_path)
    check(tmp_path, storage, BASE, trials=3)
    check(tmp_path, storage, BASE, trials=5, sampler="random", pruner="hyperband", workers=2)
    other = {"tiny.x": {"float": [0.0, 2.0]}}
    for keys, base, key in (
        ({"space": other}, BASE, "space.tiny.x.float"),
        ({"space": {"tiny.x": {"float": [0.0, 1.0], "log": False}}}, BASE, "space.tiny.x.log"),
        ({"overrides": {"tiny.sleep": 1}}, BASE, "overrides.tiny.sleep"),
        ({"monitor": "validation/auroc"}, BASE, "monitor"),
        ({"seeds": 2}, BASE, "seeds"),
        ({}, {**BASE, "data": {"ood": {}}}, "base.data.ood"),
        ({}, {**BASE, "seed_everything": 1}, "base.seed_everything"),
    ):
        with pytest.raises(UserError, match=f"study: 'tiny' is there already, and differs in {key}; ") as caught:
            check(tmp_path, storage, base, **keys)
        assert "\n" not in str(caught.value)
    check(tmp_path, storage, BASE, space=other, study="another")
