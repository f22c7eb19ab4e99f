"""An output in the making: a part file beside it that a killed run leaves whole up to a row that it knows.

Beside `scored.jsonl` lie `scored.jsonl.part` with what is written and `scored.jsonl.part.journal` with what that is: a
line of what the run is made of, then a line a chunk. A chunk counts once its line is there; what lies behind it in
the part file is cut off by the run that goes on. When all is written the part file takes the output's name.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from aplot_lightning.errors import UserError
from aplot_lightning.inference.formats import Format, format_of

FORMAT = 1  # raised when a part file of before cannot be gone on with
GO_ON, AFRESH = "go on with --resume true", "start over with --overwrite true"


@dataclass(frozen=True)
class Mark:
    """Up to where the part file is whole.

    Attributes:
        rows: written, from the input's first on.
        unusable: how many of them have no rewards.
        bytes: length of the part file.
        digest: of the input's rows up to here.
    """

    rows: int = 0
    unusable: int = 0
    bytes: int = 0
    digest: str = ""


def part_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.part")


def journal_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.part.journal")


def check_output(output: Path, source: str, *, overwrite: bool, resume: bool) -> bool:
    """Whether there is anything left to do; what stands in the way is found before anything heavy is imported.

    Raises:
        UserError: the output is a folder, lies in none, is the input itself, or is there already (also in part) and
            neither `resume` nor `overwrite` says what to do with it.
    """
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output: {output} is a folder or lies in one that does not exist: name a file")
    with suppress(OSError, ValueError):
        if output.exists() and output.samefile(Path(source).expanduser()):
            raise UserError(f"--output: {output} is --input itself: name another file")
    part, journal = part_of(output), journal_of(output)
    if part.exists() and not journal.exists():
        raise UserError(f"--output: {part} is in the way and no run of this command left it: move it or name another")
    if overwrite:
        return True
    if part.exists() and not resume:
        raise UserError(f"--output: {part} was left by a run that did not end: {GO_ON}, or {AFRESH}")
    if part.exists() or not output.exists():
        return True
    if not resume:
        raise UserError(f"--output: {output} exists already: name another file or add --overwrite true")
    return False


class Part:
    """The part file of one output, opened for writing by this process alone.

    Args:
        output: where it goes in the end.
        identity: what decides its content, by name; the run that goes on must have the same.
        resume: go on with what is there, if anything is.
        replace: an output that exists is to be replaced.

    Attributes:
        mark: up to where it is written.
        calibration: what `note` kept of a former run.

    Raises:
        UserError: it cannot be written, another process writes it, or it is of another run.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], *, resume: bool, replace: bool) -> None:
        self.output, self.path, self._journal_path = output, part_of(output), journal_of(output)
        self.format: Format = format_of(output)
        self.mark, self.calibration = Mark(), None
        identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        try:
            self._journal = self._locked()
            try:
                self._file = self._opened(identity, resume, replace)
            except BaseException:
                self._journal.close()
                raise
        except OSError as error:
            raise self._unwritten(error) from error

    def _opened(self, identity: Mapping[str, Any], resume: bool, replace: bool) -> IO[bytes]:
        if resume and self.path.exists():
            self._go_on(identity, replace)
        else:
            self.path.unlink(missing_ok=True)
            self._journal.truncate(0)
            self._say({"identity": identity, "replace": replace})
        return self.path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._file.close()
        if kind is not None and not self.mark.rows:
            self.discard()
        self._journal.close()

    @property
    def kept(self) -> str:
        """What is there for a run that goes on, for a message; empty where there is nothing."""
        return f"the first {self.mark.rows} rows are kept in {self.path}: {GO_ON}" if self.mark.rows else ""

    def append(self, rows: Sequence[Mapping[str, Any]], unusable: int, digest: str) -> None:
        """Writes a chunk; when this returns, it is on the disk. Raises UserError where the disk does not take it."""
        try:
            self._file.write(self.format.encode(rows))
            self._file.flush()
            os.fsync(self._file.fileno())
            size = os.fstat(self._file.fileno()).st_size
            mark = Mark(self.mark.rows + len(rows), self.mark.unusable + unusable, size, digest)
            self._say({"mark": asdict(mark)})
        except OSError as error:
            raise self._unwritten(error) from error
        self.mark = mark

    def note(self, calibration: Mapping[str, Any]) -> None:
        """Keeps a fitted calibration, so that a run that goes on need not fit it again."""
        try:
            self._say({"calibration": dict(calibration)})
        except OSError as error:
            raise self._unwritten(error) from error

    def finish(self, beside: Mapping[Path, bytes]) -> list[str]:
        """Puts the output in its place, and small files beside it before; what there is to tell of it, one line each.

        Raises UserError where the disk does not take them.
        """
        try:
            self._file.close()
            notes = self.format.finish(self.path)
            for path, content in beside.items():
                replace_file(path, content)
            os.replace(self.path, self.output)
            _sync_folder(self.output.parent)
            self._journal_path.unlink()
        except OSError as error:
            raise self._unwritten(error) from error
        return notes

    def discard(self) -> None:
        self.mark = Mark()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self._journal_path.unlink(missing_ok=True)

    def _locked(self) -> IO[bytes]:
        journal = self._journal_path.open("ab+")
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            journal.close()
            raise UserError(f"--output: another process is writing {self.path}: wait for it or stop it") from error
        return journal

    def _go_on(self, identity: Mapping[str, Any], replace: bool) -> None:
        """Cuts both files after the last chunk that is whole in both."""
        self._journal.seek(0)
        lines = self._journal.read().split(b"\n")[:-1]  # a line that broke off does not count
        try:
            head, *entries = map(json.loads, lines)
            known, was_to_replace = head["identity"], head["replace"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"--resume: {self._journal_path} is damaged: {AFRESH}") from error
        other = next((name for name in {**known, **identity} if known.get(name) != identity.get(name)), None)
        if other is not None:
            was = f" ({known.get(other)!r:.80} before, {identity.get(other)!r:.80} now)"
            raise UserError(f"--resume: {self.path} was begun with another {other}{was}: give the same, or {AFRESH}")
        if self.output.exists() and not (replace or was_to_replace):
            raise UserError(f"--output: {self.output} exists already beside {self.path}: move one, or {AFRESH}")
        size = self.path.stat().st_size
        kept = len(lines[0]) + 1
        for line, entry in zip(lines[1:], entries, strict=True):
            if "mark" in entry:
                if entry["mark"]["bytes"] > size:  # the journal reached the disk, the part file did not
                    break
                self.mark = Mark(**entry["mark"])
            self.calibration = entry.get("calibration", self.calibration)
            kept += len(line) + 1
        os.truncate(self.path, self.mark.bytes)
        self._journal.truncate(kept)

    def _say(self, entry: Mapping[str, Any]) -> None:
        self._journal.write(json.dumps(entry).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _unwritten(self, error: OSError) -> UserError:
        then = f"; make room or mend that, {self.kept}" if self.mark.rows else ""
        return UserError(f"--output: {self.output} could not be written: {error.strerror or error}{then}")


def replace_file(path: Path, content: bytes) -> None:
    """Writes a small file that is whole or not there. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
