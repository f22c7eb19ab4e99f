from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from aplot_lightning.errors import UserError
from aplot_lightning.inference.part import Mark, Part, check_output, journal_of, part_of

IDENTITY = {"model": ["abc"], "--dtype": "float32"}
CHUNKS = [[{"n": 1}, {"n": 2}], [{"n": 3}]]
WHOLE = '{"n": 1}\n{"n": 2}\n{"n": 3}\n'


def begin(path: Path, chunks=CHUNKS[:1], *, replace: bool = False) -> None:
    """What a run leaves that is killed after these chunks."""
    part = Part(path, IDENTITY, resume=False, replace=replace)
    for number, rows in enumerate(chunks):
        part.append(rows, 0, f"digest {number}")
    part._file.close()
    part._journal.close()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.mark.parametrize("torn", ["", '{"n": 3', '{"n": 3}\n{"n"'])
def test_it_goes_on_behind_the_last_whole_chunk(path, torn):
    begin(path)
    with part_of(path).open("a") as file:
        file.write(torn)
    with journal_of(path).open("a") as file:
        file.write('{"mark": {"ro')
    with Part(path, IDENTITY, resume=True, replace=False) as part:
        assert (part.mark.rows, part.mark.digest) == (2, "digest 0")
        part.append(CHUNKS[1], 1, "x")
        assert part.mark.unusable == 1
        assert part.finish({}) == []
    assert path.read_text() == WHOLE
    assert [each.name for each in path.parent.iterdir()] == ["out.jsonl"]


def test_a_chunk_that_never_reached_the_disk_is_written_again(path):
    begin(path, CHUNKS)
    os.truncate(part_of(path), len('{"n": 1}\n{"n": 2}\n') + 3)  # as after a power failure
    with Part(path, IDENTITY, resume=True, replace=False) as part:
        assert part.mark.rows == 2
        part.append(CHUNKS[1], 0, "x")
        part.finish({})
    assert path.read_text() == WHOLE


def test_a_former_runs_calibration_is_kept(path):
    with Part(path, IDENTITY, resume=False, replace=False) as part:
        part.note({"temperature": 2.0})
        part.append(CHUNKS[0], 0, "x")
    with Part(path, IDENTITY, resume=True, replace=False) as part:
        assert part.calibration == {"temperature": 2.0}


def test_another_run_does_not_go_on(path):
    begin(path)
    with pytest.raises(UserError, match=r"begun with another --dtype \('float32' before, 'bfloat16' now\)"):
        Part(path, {**IDENTITY, "--dtype": "bfloat16"}, resume=True, replace=False)
    journal_of(path).write_text("nonsense\n")
    with pytest.raises(UserError, match=r"journal is damaged: start over with --overwrite true"):
        Part(path, IDENTITY, resume=True, replace=False)
    with Part(path, IDENTITY, resume=False, replace=True) as part:
        assert part.mark == Mark()


def test_two_processes_do_not_write_one_output(path):
    with (
        Part(path, IDENTITY, resume=False, replace=False),
        pytest.raises(UserError, match="another process is writing"),
    ):
        Part(path, IDENTITY, resume=True, replace=False)


@pytest.mark.parametrize(("written", "left"), [([], []), (CHUNKS[:1], ["out.jsonl.part", "out.jsonl.part.journal"])])
def test_a_failure_leaves_what_is_worth_it(path, written, left):
    with pytest.raises(RuntimeError), Part(path, IDENTITY, resume=False, replace=False) as part:  # noqa: PT012
        for rows in written:
            part.append(rows, 0, "x")
        raise RuntimeError
    assert sorted(each.name for each in path.parent.iterdir()) == left


def test_a_full_disk_is_one_line_and_loses_nothing(path, monkeypatch):
    begin(path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError) as caught, Part(path, IDENTITY, resume=True, replace=False) as part:  # noqa: PT012
        monkeypatch.setattr(os, "fsync", full)
        part.append(CHUNKS[1], 0, "x")
    monkeypatch.undo()
    assert str(caught.value) == (
        f"--output: {path} could not be written: No space left on device; make room or mend that, "
        f"the first 2 rows are kept in {part_of(path)}: go on with --resume true"
    )
    with Part(path, IDENTITY, resume=True, replace=False) as part:
        part.append(CHUNKS[1], 0, "x")
        part.finish({path.with_name("beside.json"): b"{}"})
    assert path.read_text() == WHOLE
    assert json.loads(path.with_name("beside.json").read_bytes()) == {}


def test_what_is_in_the_way_is_told(path):
    def check(**options):
        return check_output(path, "in.jsonl", **{"overwrite": False, "resume": False, **options})

    assert check()
    begin(path)
    with pytest.raises(UserError, match=r"out\.jsonl\.part was left by .*: go on with --resume true, or start over"):
        check()
    assert check(resume=True)
    assert check(overwrite=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=r"out\.jsonl exists already beside .*\.part: move one"):
        Part(path, IDENTITY, resume=True, replace=False)
    journal_of(path).unlink()
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"\.part is in the way and no run of this command left it"):
            check(**options)
    part_of(path).unlink()
    with pytest.raises(UserError, match=r"exists already: name another file or add --overwrite true"):
        check()
    assert not check(resume=True)  # whole
    with pytest.raises(UserError, match=r"out\.jsonl is --input itself"):
        check_output(path, str(path), overwrite=True, resume=False)


def test_a_run_that_was_to_replace_goes_on_to(path):
    path.write_text("mine")
    begin(path, replace=True)
    with Part(path, IDENTITY, resume=True, replace=False) as part:
        part.append(CHUNKS[1], 0, "x")
        part.finish({})
    assert path.read_text() == WHOLE
