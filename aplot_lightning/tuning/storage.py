"""Where a study is kept, and the one way in which its processes open it: SQLite, PostgreSQL, or a journal file.

What a storage does not hold (sampler, pruner, heartbeats) is set here, for the process that gives trials out as for the
run that reports to it. Imports nothing heavy but Optuna, and that only when a study is opened.
"""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, Literal

from aplot_lightning.errors import RunError, UserError
from aplot_lightning.tuning.locks import JOURNAL, POSTGRES, SQLITE, JournalLock, database_url, file_of, locked

if TYPE_CHECKING:
    import optuna

HEARTBEAT = 20  # seconds between two signs of life of a trial in a database
GRACE = 120  # seconds without one, after which its process is taken for dead
PATIENCE = 60  # seconds that a write may wait for others'
KINDS = f"{SQLITE}PATH, {POSTGRES}://USER:PASSWORD@HOST/DATABASE or {JOURNAL}PATH"
PRUNERS = {"median": "MedianPruner", "hyperband": "HyperbandPruner", "none": "NopPruner"}


def check_location(location: str) -> None:
    """Raises UserError for a storage of another kind, before anything is imported for it."""
    if not location.startswith((JOURNAL, SQLITE, f"{POSTGRES}://", f"{POSTGRES}+")):
        raise UserError(f"storage: {without_password(location)!r} is none that a study can be kept in: {KINDS}")
    path = file_of(location)
    if path is not None and path.is_dir():
        raise UserError(f"storage: {path} is a folder; name a file")


def without_password(location: str) -> str:
    """A database URL as it may be shown."""
    head, at, tail = location.rpartition("@")
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}:***@{tail}" if at and ":" in user else location


@contextmanager
def told_in_one_line(location: str) -> Iterator[None]:
    """Turns what a storage refuses (unreachable, full, read-only, damaged) into one line.

    Raises:
        UserError: a database that does not answer, or a file that cannot be opened, which the user has named.
        RunError: a disk that takes no more.
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
        said = " ".join(str(getattr(cause, "orig", None) or cause).split())[:300]
        full = any(word in said for word in ("disk is full", "disk I/O", "No space left", "disk full"))
        raise _refused(shown, said, full) from error
    except ValueError as error:
        if not (isinstance(error, JSONDecodeError) or "Invalid log format" in str(error)):
            raise
        raise _refused(shown, "it is no journal of Optuna's", full=False) from error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _refused(shown: str, reason: str, full: bool) -> Exception:
    if full:
        return RunError(f"storage: {shown} takes no more ({reason}); make room and run the same command again")
    return UserError(f"storage: {shown} cannot be used ({reason}); see that it is there and may be written")


def open_study(
    location: str,
    name: str,
    *,
    direction: Literal["minimize", "maximize"],
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> tuple[optuna.Study, optuna.storages.BaseStorage]:
    """The study of this name, made where there is none, and the storage that it is in.

    Args:
        location: sqlite:///PATH, postgresql://..., or journal:PATH.
        name: of the study.
        direction: minimize or maximize.
        sampler: proposes values; of the process that gives trials out.
        pruner: stops trials; of the run that reports.

    Raises:
        UserError: the storage cannot be reached or opened.
        RunError: its disk is full.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with told_in_one_line(location), locked(location, "open"), without_remarks():
        storage = _open_storage(location)
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
    """Raises UserError where a database server does not answer; files are made when the study is opened."""
    if file_of(location) is None:
        with told_in_one_line(location), locked(location, "open"):
            pass


def _open_storage(location: str) -> optuna.storages.BaseStorage:
    import optuna

    path = file_of(location)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path is not None and location.startswith(JOURNAL):
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        lock: Any = JournalLock(path)  # the base class of locks is not public
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    logging.getLogger("alembic").setLevel(logging.ERROR)
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if path is not None:
        engine["connect_args"] = {"timeout": PATIENCE}
    return optuna.storages.get_storage(
        optuna.storages.RDBStorage(
            database_url(location), engine_kwargs=engine, heartbeat_interval=HEARTBEAT, grace_period=GRACE
        )
    )


def build_sampler(name: str, seed: int, conditional: bool) -> optuna.samplers.BaseSampler:
    """A sampler by its name in the study's YAML.

    Args:
        name: tpe, random, gp or grid, whose points are all given out beforehand.
        seed: for one trial.
        conditional: whether trials have different parameters.
    """
    import optuna

    with without_remarks():
        if name == "tpe":  # parameters are drawn together, and far from what other workers try at the moment
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=conditional, constant_liar=True)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, deterministic_objective=True)
        return optuna.samplers.RandomSampler(seed=seed)


def check_pruner(choice: str | Mapping[str, Any]) -> None:
    """Raises UserError for a pruner that there is not; Optuna is imported only for one without a short name."""
    if not (isinstance(choice, str) and choice in PRUNERS):
        build_pruner(choice)


def build_pruner(choice: str | Mapping[str, Any]) -> optuna.pruners.BasePruner:
    """A pruner by its name, class path, or {class_path, init_args}. Raises UserError for one that there is not."""
    import optuna

    options: dict[str, Any] = {"class_path": choice} if isinstance(choice, str) else dict(choice)
    path = str(options.pop("class_path", ""))
    arguments: dict[str, Any] = options.pop("init_args", None) or {}
    name = PRUNERS.get(path, path.removeprefix("optuna.pruners."))
    kind = getattr(optuna.pruners, name, None) if name.isidentifier() else None
    if options or not (isinstance(kind, type) and issubclass(kind, optuna.pruners.BasePruner)):
        raise UserError(
            f"pruner: {choice!r} is none: median, hyperband, none, or a class of optuna.pruners as "
            "{class_path: PercentilePruner, init_args: {percentile: 25.0}}"
        )
    try:
        with without_remarks():
            return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"pruner: {name}: {' '.join(str(error).split())}") from error


@contextmanager
def without_remarks() -> Iterator[None]:
    """Without Optuna's remarks that heartbeats and some samplers' options are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
