from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.tuning.storage import (
    build_pruner,
    build_sampler,
    check_location,
    check_reachable,
    database_url,
    open_study,
    storage_errors,
    without_password,
)
from tests.tuning.studies import STORAGES, location


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return location(request.param, tmp_path)


def test_a_study_is_made_once_and_then_found(storage: str) -> None:
    for number in range(2):
        study, _ = open_study(storage, "s", direction="minimize")
        assert study.direction.name == "MINIMIZE"
        study.enqueue_trial({"x": number})
    assert len(study.trials) == 2


def test_a_journal_can_be_used_after_a_line_that_was_broken_off(tmp_path: Path) -> None:
    place = location("journal", tmp_path)
    study, _ = open_study(place, "s", direction="maximize")
    study.enqueue_trial({"x": 1})
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"a')
    again, _ = open_study(place, "s", direction="maximize")
    again.enqueue_trial({"x": 2})
    assert len(again.trials) == len(study.trials) == 2
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert journal.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("sqlite:////proc/nothing/study.db", "cannot be used"),
        ("journal:/proc/nothing/journal.log", "cannot be used"),
        ("postgresql://someone:secret@127.0.0.1:1/none", "someone:.*@127.0.0.1:1/none cannot be used .*refused"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line(place: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        open_study(place, "s", direction="maximize")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_told_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        check_reachable("postgresql://someone@127.0.0.1:1/none")
    check_reachable(f"sqlite:///{tmp_path / 'a.db'}")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database, but some longer text\n" * 100)
    with pytest.raises(UserError, match="file is not a database"):
        open_study(f"sqlite:///{tmp_path / 'study.db'}", "s", direction="maximize")
    (tmp_path / "journal.log").write_text("nothing\nof a journal\n")
    with pytest.raises(UserError, match="cannot be used"):
        open_study(f"journal:{tmp_path / 'journal.log'}", "s", direction="maximize")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """As on a full disk, no file grows above so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_full_disk_is_one_line_and_the_study_goes_on_afterwards(kind: str, tmp_path: Path) -> None:
    place = location(kind, tmp_path)
    study, _ = open_study(place, "s", direction="maximize")
    study.enqueue_trial({"x": 1})
    size = max(path.stat().st_size for path in tmp_path.iterdir())

    def fill() -> None:
        with storage_errors(place), file_size_limit(size + 20):
            for number in range(500):
                study.enqueue_trial({"x": number, "padding": "p" * 200})

    with pytest.raises(RunError, match=r"is full .*free some space") as caught:
        fill()
    assert "\n" not in str(caught.value)
    again, _ = open_study(place, "s", direction="maximize")
    before = len(again.trials)
    again.enqueue_trial({"x": 2})
    assert len(again.trials) == before + 1 >= 2


def test_locations_of_other_kinds_are_refused() -> None:
    for place in ("mysql://u:secret@host/db", "study.db", "redis://host"):
        with pytest.raises(UserError, match="is not supported; use sqlite") as caught:
            check_location(place)
        assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="is a folder"):
        check_location("journal:/tmp")


def test_passwords_are_not_shown() -> None:
    assert without_password("postgresql://u:p@ss@host/d") == "postgresql://u:***@host/d"
    for plain in ("postgresql://u@host/d", "postgresql://host/d", "sqlite:////a/b@c.db", "journal:/a:b@c"):
        assert without_password(plain) == plain


def test_the_installed_driver_is_named() -> None:
    assert database_url("postgresql+psycopg2://h/d") == "postgresql+psycopg2://h/d"
    assert database_url("sqlite:///a") == "sqlite:///a"
    assert database_url("postgresql://h/d").endswith("://h/d")


def test_samplers_and_pruners_are_optunas() -> None:
    kinds = {"tpe": "TPESampler", "random": "RandomSampler", "gp": "GPSampler", "grid": "RandomSampler"}
    for name, kind in kinds.items():
        assert type(build_sampler(name, 1, conditional=True)).__name__ == kind
    pruners = {"median": "MedianPruner", "hyperband": "HyperbandPruner", "none": "NopPruner"}
    for name, kind in pruners.items():
        assert type(build_pruner(name)).__name__ == kind
    found = build_pruner({"class_path": "optuna.pruners.PercentilePruner", "init_args": {"percentile": 25.0}})
    assert isinstance(found, optuna.pruners.PercentilePruner)
    for wrong in ("early", "optuna.samplers.TPESampler", {"class_path": "MedianPruner", "args": {}}, {}):
        with pytest.raises(UserError, match=r"pruner: .* is unknown; use median"):
            build_pruner(wrong)
    assert os.environ.get("APLOT_TRIAL") is None
