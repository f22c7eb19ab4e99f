"""Whole files or none, and locks that end with their process."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from aplot_lightning.files import locked, replacing, try_lock, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "old", durable=durable)
    with pytest.raises(ZeroDivisionError), replacing(path, durable=durable) as file:
        file.write("new" * (1 // 0))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "new", durable=durable)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_gz_is_compressed_and_bytes_are_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl.gz", "é\n")
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).decode() == "é\n"
    with replacing(tmp_path / "a.bin", "wb") as file:
        file.write(b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"


def test_one_process_holds_a_lock_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"""
from pathlib import Path
from aplot_lightning.files import try_lock
held = try_lock(Path({str(path)!r}))
print(held is not None, flush=True)
input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    assert try_lock(path) is None
    other.kill()
    other.communicate()
    with locked(path):
        pass
    held = try_lock(path)
    assert held is not None
    held.release()
