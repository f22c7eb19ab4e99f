"""Opens a study's storage: SQLite, PostgreSQL, or a journal file.

What a storage does not hold (sampler, pruner, heartbeats) is set here, for the process that hands out trials and for
the run that reports to it. Optuna is imported only when a study is opened.
"""

from __future__ import annotations

import errno
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.files import locked

if TYPE_CHECKING:
    import optuna

JOURNAL, SQLITE, POSTGRES = "journal:", "sqlite:///", "postgresql"
HEARTBEAT = 20  # seconds between two heartbeats of a trial in a database
GRACE = 120  # seconds without a heartbeat after which a trial counts as dead
PATIENCE = 60  # seconds that a write may wait for the writes of other processes
# shared with the run of a trial (training/trial_report.py)
TRIAL_VARIABLE = "APLOT_TRIAL"  # environment variable: which trial the run reports to
VALUE_FILE = "value.json"  # in the run directory: the run's value
FAILURE_FILE = "failure.json"  # in the run directory: the run, or one of its ranks, failed
KINDS = f"{SQLITE}PATH, {POSTGRES}://USER:PASSWORD@HOST/DATABASE or {JOURNAL}PATH"
PRUNERS = {"median": "MedianPruner", "hyperband": "HyperbandPruner", "none": "NopPruner"}


def file_of(location: str) -> Path | None:
    """The file of an SQLite or journal storage; None for a database server."""
    start = next((start for start in (JOURNAL, SQLITE) if location.startswith(start)), None)
    return Path(location.removeprefix(start)) if start else None


def database_url(location: str) -> str:
    """A PostgreSQL URL that names the installed driver; SQLAlchemy's own choice may not be installed."""
    start = f"{POSTGRES}://"
    if location.startswith(start) and find_spec("psycopg") is None and find_spec("psycopg2") is not None:
        return f"{POSTGRES}+psycopg2://{location.removeprefix(start)}"
    return location


def check_location(location: str) -> None:
    """Raises UserError for an unsupported kind of storage, before anything is imported for it."""
    if not location.startswith((JOURNAL, SQLITE, f"{POSTGRES}://", f"{POSTGRES}+")):
        raise UserError(f"storage: {without_password(location)!r} is not supported; use {KINDS}")
    path = file_of(location)
    if path is not None and path.is_dir():
        raise UserError(f"storage: {path} is a folder; name a file")


def without_password(location: str) -> str:
    """A database URL as it may be shown."""
    head, at, tail = location.rpartition("@")
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}:***@{tail}" if at and ":" in user else location


@contextmanager
def storage_errors(location: str) -> Iterator[None]:
    """Turns the errors of a storage (unreachable, full, read-only, damaged) into one line.

    Raises:
        UserError: a database does not answer, or a file cannot be opened.
        RunError: the disk is full.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    shown = without_password(location)
    try:
        yield
    except ImportError as error:
        raise UserError(f'storage: {shown} needs {error.name}: pip install "aplot-lightning[postgres]"') from error
    except OSError as error:
        raise _refused(error.filename or shown, error.strerror or str(error), full=error.errno in FULL) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())[:300]
        full = any(word in reason for word in ("disk is full", "disk I/O", "No space left", "disk full"))
        raise _refused(shown, reason, full) from error
    except ValueError as error:
        if not (isinstance(error, JSONDecodeError) or "Invalid log format" in str(error)):
            raise
        raise _refused(shown, "it is not an Optuna journal", full=False) from error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _refused(shown: str, reason: str, full: bool) -> Exception:
    if full:
        return RunError(f"storage: {shown} is full ({reason}); free some space and run the same command again")
    return UserError(f"storage: {shown} cannot be used ({reason}); check that it exists and can be written")


def open_study(
    location: str,
    name: str,
    *,
    direction: Literal["minimize", "maximize"],
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    requeue: Callable[[optuna.Study, optuna.trial.FrozenTrial], None] | None = None,
) -> tuple[optuna.Study, optuna.storages.BaseStorage]:
    """Opens the study of this name, or creates it. Returns it and its storage.

    Args:
        location: sqlite:///PATH, postgresql://..., or journal:PATH.
        name: of the study.
        direction: minimize or maximize.
        sampler: proposes values, in the process that hands out trials.
        pruner: stops trials, in the run that reports.
        requeue: called with each trial that `optuna.storages.fail_stale_trials` fails; databases only.

    Raises:
        UserError: the storage cannot be reached or opened.
        RunError: its disk is full.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = file_of(location)
    one_at_a_time = locked(path.with_name(f".{path.name}.open.lock")) if path is not None else nullcontext()
    with storage_errors(location), one_at_a_time, without_warnings():
        storage = _open_storage(location, requeue)
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction=direction,
            sampler=sampler or optuna.samplers.RandomSampler(seed=0),
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    return study, storage


def check_reachable(location: str) -> None:
    """Raises UserError if a database server does not answer. Files are created when the study is opened."""
    if file_of(location) is None:
        with storage_errors(location):
            import sqlalchemy

            sqlalchemy.create_engine(database_url(location)).connect().close()


def _open_storage(location: str, requeue: Any) -> optuna.storages.BaseStorage:
    import optuna

    path = file_of(location)
    if path is not None and location.startswith(JOURNAL):
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        backend = JournalFileBackend(str(path))
        _cut_broken_line(path)
        return JournalStorage(backend)
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    logging.getLogger("alembic").setLevel(logging.ERROR)
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if path is not None:
        engine["connect_args"] = {"timeout": PATIENCE}
    storage = partial(
        optuna.storages.RDBStorage,
        database_url(location),
        engine_kwargs=engine,
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
        heartbeat_stale_trial_callback=requeue,
    )
    try:
        return optuna.storages.get_storage(storage())
    except (IntegrityError, ProgrammingError):  # another machine creates the same tables at this moment
        time.sleep(2)
        return optuna.storages.get_storage(storage())


def _cut_broken_line(path: Path) -> None:
    """Removes a last line that a full disk broke off: Optuna would read it together with the next one and fail."""
    from optuna.storages.journal import JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with path.open("rb+") as file:
            content = file.read()
            if not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def build_sampler(name: str, seed: int, conditional: bool) -> optuna.samplers.BaseSampler:
    """A sampler by its name in the study's YAML.

    Args:
        name: tpe, random, gp, or grid, whose points are fixed beforehand.
        seed: of one trial.
        conditional: whether trials may have different parameters.
    """
    import optuna

    with without_warnings():
        if name == "tpe":  # draws parameters jointly, and away from the running trials of other workers
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=conditional, constant_liar=True)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, deterministic_objective=True)
        return optuna.samplers.RandomSampler(seed=seed)


def check_pruner(choice: str | Mapping[str, Any]) -> None:
    """Raises UserError for an unknown pruner. Imports Optuna only for one without a short name."""
    if not (isinstance(choice, str) and choice in PRUNERS):
        build_pruner(choice)


def build_pruner(choice: str | Mapping[str, Any]) -> optuna.pruners.BasePruner:
    """A pruner by its name, class path, or {class_path, init_args}. Raises UserError for an unknown one."""
    import optuna

    options: dict[str, Any] = {"class_path": choice} if isinstance(choice, str) else dict(choice)
    path = str(options.pop("class_path", ""))
    arguments: dict[str, Any] = options.pop("init_args", None) or {}
    name = PRUNERS.get(path, path.removeprefix("optuna.pruners."))
    kind = getattr(optuna.pruners, name, None) if name.isidentifier() else None
    if options or not (isinstance(kind, type) and issubclass(kind, optuna.pruners.BasePruner)):
        raise UserError(
            f"pruner: {choice!r} is unknown; use median, hyperband, none, or a class of optuna.pruners as "
            "{class_path: PercentilePruner, init_args: {percentile: 25.0}}"
        )
    try:
        with without_warnings():
            return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"pruner: {name}: {' '.join(str(error).split())}") from error


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hides Optuna's warnings that heartbeats and some options of samplers are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
