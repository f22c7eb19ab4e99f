"""Entries are whole or not there: damage, interruption, several builders, unwritable folders, full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from aplot_lightning.data.preparation.cache import MANIFEST, Cache
from aplot_lightning.errors import UserError

ROOT = Path(__file__).parents[2]
CONTENT = {"a.bin": bytes(range(256)) * 9000, "b.json": b'{"x": 1}'}  # longer than one block of a checksum


class Build:
    """Writes CONTENT and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        for name, content in CONTENT.items():
            (folder / name).write_bytes(content)


def content(entry: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in entry.iterdir() if path.name != MANIFEST}


def test_an_entry_is_built_once(tmp_path: Path) -> None:
    build = Build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entries = {Cache(tmp_path / "new").entry("level", key, build) for key in ("k", "k", "k", "other")}
    assert build.times == 2
    assert len(entries) == 2
    assert all(content(entry) == CONTENT for entry in entries)
    assert {path.suffix for path in (tmp_path / "new" / "level").iterdir()} == {"", ".lock"}


def flip(entry: Path) -> None:
    data = bytearray((entry / "a.bin").read_bytes())
    data[-700] ^= 1
    (entry / "a.bin").write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a.bin has another checksum": flip,
    "a.bin has another size": lambda entry: os.truncate(entry / "a.bin", 100),
    "b.json cannot be read": lambda entry: (entry / "b.json").unlink(),
    "manifest.json cannot be read": lambda entry: (entry / MANIFEST).unlink(),
    "manifest.json cannot be understood": lambda entry: (entry / MANIFEST).write_text('{"files": {"a.bin": [1'),
    "cannot be understood": lambda entry: (entry / MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("fault", DAMAGES)
def test_damage_is_said_once_and_mended(tmp_path: Path, fault: str) -> None:
    build, cache = Build(), Cache(tmp_path)
    entry = cache.entry("level", "k", build)
    DAMAGES[fault](entry)
    with pytest.warns(UserWarning, match=f"prepared data is damaged and is made again: .*{fault}") as caught:
        assert cache.entry("level", "k", build) == entry
    assert len(caught) == 1
    assert (build.times, content(entry)) == (2, CONTENT)
    assert cache.entry("level", "k", build) == entry
    assert build.times == 2


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Cache(tmp_path).entry("level", "k", fail)
    assert [path.name for path in (tmp_path / "level").iterdir()] == ["k.lock"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    with pytest.raises(UserError, match=rf"^data\.cache_dir: no space is left at {tmp_path}: free some") as caught:
        Cache(tmp_path).entry("level", "k", fill)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("level/*.partial"))


def test_a_folder_that_cannot_be_written_is_replaced_with_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache, build = Cache(tmp_path / "file" / "cache"), Build()
    with pytest.warns(UserWarning, match=r"data\.cache_dir: .*file/cache cannot be written \(Not a directory\)"):
        first = cache.entry("level", "k", build)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = cache.entry("other", "k", build)
    assert content(first) == content(second) == CONTENT
    assert not first.is_relative_to(tmp_path)


def test_a_folder_that_may_only_be_read_still_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Cache(tmp_path).entry("level", "k", Build())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert Cache(tmp_path).entry("level", "k", Build()) == entry


def test_the_folder_is_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APLOT_CACHE", str(tmp_path / "one"))
    assert Cache().folder == tmp_path / "one"
    assert Cache(tmp_path / "two").folder == tmp_path / "two"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("APLOT_CACHE")
    assert Cache().folder == tmp_path / ".cache" / "aplot_lightning"
    assert Cache("~/x").folder == tmp_path / "x"


BUILDER = """
import sys, time
from pathlib import Path
from aplot_lightning.data.preparation.cache import Cache
root, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def build(folder):
    with log.open("a") as file:
        file.write("building\\n")
    (folder / "x").write_text("whole")
    time.sleep(seconds)
print((Cache(root).entry("level", "k", build) / "x").read_text())
"""


def builder(folder: Path, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", BUILDER, str(folder / "cache"), str(folder / "log"), str(seconds)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_several_processes_build_once(tmp_path: Path) -> None:
    processes = [builder(tmp_path, 1.0) for _ in range(3)]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["whole\n"] * 3
    assert (tmp_path / "log").read_text() == "building\n"


def test_a_killed_builder_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    process = builder(tmp_path, 600.0)
    while not list(tmp_path.glob("cache/level/*.partial/x")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.glob("cache/level/*.partial"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entry = Cache(tmp_path / "cache").entry("level", "k", Build())
    assert content(entry) == CONTENT
    assert not list(tmp_path.glob("cache/level/*.partial"))
