"""A file of rows in, the same rows with rewards out: in bounded memory, and going on where a killed run stopped.

Rows are scored by chunks that are cut by their numbers and sizes alone, so that a run that goes on scores the very
chunks that an undisturbed one would have, and writes the same bytes. While one chunk is scored, the next is read and
tokenised.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.data.sources import Source, open_source
from aplot_lightning.errors import UserError
from aplot_lightning.inference.normalisation import Normalisation, Running
from aplot_lightning.inference.part import AFRESH, Part, check_output
from aplot_lightning.inference.progress import progress, rows_of, warn
from aplot_lightning.inference.rows import Row, read_row
from aplot_lightning.model.locate import locate_model

if TYPE_CHECKING:
    from aplot_lightning.inference.scorer import Combine, Encoded, Scorer
    from aplot_lightning.model.reward_model import RewardModel

CHUNK = 256  # rows that are read, sorted by length and scored together
CHUNK_CONVERSATIONS = 4096  # a chunk ends with the row that reaches this many

Rows = Iterator[tuple[str, Any]]
Read = Callable[[str, Any], Row]
Write = Callable[[Row], Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """What `score` and `rank` are told alike; their options of the same names say what each means."""

    model: str
    input: str
    output: str
    dtype: str = "float32"
    max_length: int | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    overwrite: bool = False
    resume: bool = False
    ensemble: list[str] | None = None
    combine: Combine = "mean"
    normalise: bool = False
    more: dict[str, Any] = field(default_factory=dict)  # of the command's own options, those that decide the output

    @property
    def names(self) -> list[tuple[str, str]]:
        """The models, each with the option that names it."""
        return [(self.model, "--model"), *((name, "--ensemble") for name in self.ensemble or [])]

    @property
    def path(self) -> Path:
        return Path(self.output).expanduser()

    def check(self) -> bool:
        """Finds the mistakes that can be told before anything heavy is imported; False where the output is whole."""
        if self.combine != "mean" and not self.ensemble:
            raise UserError(f"--combine {self.combine} needs further models: name them by --ensemble")
        for name in ("max_length", "batch_size", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}: it must be at least 1")
        left = check_output(self.path, self.input, overwrite=self.overwrite, resume=self.resume)
        for name, key in self.names:
            locate_model(name, key)
        return left

    def load(self) -> Scorer:
        from aplot_lightning.inference.scorer import Scorer

        return Scorer.load(
            self.names,
            dtype=self.dtype,
            max_length=self.max_length,
            normalise=self.normalise,
            combine=self.combine,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
        )

    def open(self, scorer: Scorer) -> Part:
        """The part file of the output. Raises UserError as `Part` does."""
        identity = {
            "kind of output": self.path.suffix,
            "model, tokenizer or --max_length": scorer.fingerprint(),
            "--dtype": self.dtype,
            "--combine": self.combine,
            "--batch_size": self.batch_size,
            "--batch_tokens": self.batch_tokens,
            "--normalise": [(each.mean, each.scale) for each in scorer.normalisations],
            "chunk size": [CHUNK, CHUNK_CONVERSATIONS],
            **self.more,
        }
        return Part(self.path, identity, resume=self.resume, replace=self.overwrite)


def first_rows(given: str, key: str) -> tuple[Source, Rows]:
    """A source and its rows, the first of them read: a file that cannot be is found before a model is loaded."""
    source = open_source(given, key)
    rows = source.rows()
    first = next(rows, None)
    if first is None:
        raise UserError(f"{key}: {given} has no rows")
    return source, chain([first], rows)


def score_all(job: Job, source: Source, rows: Rows, scorer: Scorer, part: Part, read: Read, write: Write) -> None:
    """Scores what the part file does not hold yet; afterwards it holds every row.

    Args:
        job: the options.
        source: the input, for the progress bar.
        rows: its rows from the first on.
        scorer: the models.
        part: where to write, opened by `Job.open`.
        read: from an input row to what is to be scored.
        write: from a scored row to what is written.

    Raises:
        UserError: the input cannot be read to its end, has changed, or holds no usable row; the disk is full. What is
            written stays, and the message says how to go on.
    """
    try:
        reader = Chunks(rows, read, scorer)
        reader.skip(part.mark.rows, part.mark.digest)
        with progress(lambda: rows_of(source), part.mark.rows) as advance, ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(next, reader, None)
            while (chunk := coming.result()) is not None:
                coming = ahead.submit(next, reader, None)
                scorer.score(chunk.rows, chunk.encoded)
                unusable = [row for row in chunk.rows if row.problem is not None]
                part.append([write(row) for row in chunk.rows], len(unusable), chunk.digest)
                for row in unusable:
                    warn(f"{row.where}: {row.problem}; its rewards are null")
                advance(len(chunk.rows))
    except UserError as error:
        if not part.mark.rows or part.kept in str(error):
            raise
        raise UserError(f"{error}; {part.kept}") from error
    except BaseException:
        if part.mark.rows:
            sys.stderr.write(f"aplot: {part.kept}\n")
        raise
    if part.mark.rows == part.mark.unusable:
        part.discard()
        raise UserError(f"--input: {job.input} holds no row that can be scored; nothing was written")


def rewards_of(given: str, key: str, scorer: Scorer) -> Iterator[Row]:
    """The rows of a file that have rewards, scored by chunks. Raises UserError where it cannot be read."""
    for chunk in Chunks(first_rows(given, key)[1], read_row, scorer):
        scorer.score(chunk.rows, chunk.encoded)
        yield from (row for row in chunk.rows if row.problem is None)


def measure(model: RewardModel, given: str) -> Normalisation:
    """Mean and scale of a model's rewards on a file, in constant memory. Raises UserError where they have no scale."""
    from aplot_lightning.inference.scorer import Scorer

    running = Running()
    for row in rewards_of(given, "--normalise", Scorer([model])):
        running.update(row.rewards)
    if not running.scale:
        raise UserError(
            f"--normalise: {given} holds {running.count} responses that can be scored, whose rewards have no scale: "
            "give a file of many"
        )
    return Normalisation(running.mean, running.scale, running.count, Path(given).name)


def finish(job: Job, part: Part, beside: Mapping[Path, bytes] | None = None) -> str:
    """Puts the output in its place, small files beside it before, and returns what it is, in a line."""
    mark = part.mark
    for note in part.finish(beside or {}):
        warn(note)
    if mark.unusable:
        warn(f"{mark.unusable} of {mark.rows} rows have null rewards")
    return f"scored {mark.rows - mark.unusable} rows: {job.output}"


@dataclass(frozen=True)
class Chunk:
    """Rows that are scored together, their tokens for each model, and the digest of all input up to their end."""

    rows: list[Row]
    encoded: list[Encoded]
    digest: str


class Chunks(Iterator[Chunk]):
    """The chunks of an input, read and tokenised one by one.

    Args:
        rows: the input from its first row on.
        read: what of a row is to be scored.
        scorer: whose models' tokens are wanted.
    """

    def __init__(self, rows: Rows, read: Read, scorer: Scorer) -> None:
        self._rows, self._read, self._scorer, self._state = rows, read, scorer, sha256()

    def skip(self, count: int, digest: str) -> None:
        """Passes over rows that are scored. Raises UserError where they are not the rows that were."""
        for _, content in islice(self._rows, count):
            self._digest(content)
        if count and self._state.hexdigest() != digest:
            raise UserError(f"--resume: the first {count} rows of --input have changed since: {AFRESH}")

    def __next__(self) -> Chunk:
        chunk: list[Row] = []
        conversations = 0
        for where, content in self._rows:
            self._digest(content)
            chunk.append(self._read(where, content))
            conversations += len(chunk[-1].conversations)
            if len(chunk) >= CHUNK or conversations >= CHUNK_CONVERSATIONS:
                break
        if not chunk:
            raise StopIteration
        return Chunk(chunk, self._scorer.encode(chunk), self._state.hexdigest())

    def _digest(self, content: Any) -> None:
        self._state.update(repr(content).encode("utf-8", "surrogatepass") + b"\0")
