"""`score`: a reward for every response of a file, row by row and in order, in bounded memory.

Heavy imports wait until the cheap mistakes (a missing input, an existing output) are found.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import IO, Any, Literal

from aplot_lightning.data.comparisons import Conversation, RowError, conversation_of
from aplot_lightning.data.sources import open_source
from aplot_lightning.errors import UserError
from aplot_lightning.model.locate import locate_model

CHUNK = 512  # rows that are read, sorted by length and scored together

Encode = Callable[[Sequence[Conversation]], list[Any]]  # conversations to rows of token ids
Score = Callable[[Sequence[Any]], list[float]]  # rows of token ids to rewards
Combine = Literal["mean", "minimum", "mean_minus_variance"]


@dataclass
class Row:
    """One input row on its way to the output.

    Attributes:
        where: file and line.
        content: the row as it was read; empty where it could not be.
        layout: ``pair``, ``responses`` or ``response``.
        conversations: what is to be scored, in the order of the row.
        problem: why the row has no rewards; None where it has.
        by_model: each model's rewards, one a conversation.
        rewards: what comes of them, one a conversation.
    """

    where: str
    content: dict[str, Any] = field(default_factory=dict)
    layout: str = "pair"
    conversations: list[Conversation] = field(default_factory=list)
    problem: str | None = None
    by_model: list[list[float]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def output(self) -> dict[str, Any]:
        """The input row with its rewards, null where there are none."""
        if self.layout == "responses":
            return {**self.content, "rewards": self.rewards if self.problem is None else None}
        names = ["reward"] if self.layout == "response" else ["chosen_reward", "rejected_reward"]
        rewards = self.rewards if self.problem is None else [None] * len(names)
        return {**self.content, **dict(zip(names, rewards, strict=True))}


def main(
    model: str,
    input: str,
    output: str,
    dtype: str = "float32",
    max_length: int | None = None,
    batch_size: int = 16,
    batch_tokens: int | None = None,
    overwrite: bool = False,
    ensemble: list[str] | None = None,
    combine: Combine = "mean",
) -> None:
    """Gives every response of a file its reward.

    The output holds the input rows in their order: pairs with chosen_reward and rejected_reward, rows of responses
    with rewards, rows of one response with reward. A row that cannot be used gets null and a warning with its line.

    Args:
        model: A run directory (its best checkpoint), a checkpoint file, an exported folder or a hub name.
        input: Rows of {"prompt", "chosen", "rejected"}, {"prompt", "responses"} or {"prompt", "response"}; JSONL,
            JSONL.gz or Parquet.
        output: Where to write, JSONL or JSONL.gz; the file appears when it is whole.
        dtype: Precision of the backbone: float32, bfloat16 or float16.
        max_length: Tokens of a prompt with one response; the run's own if not given.
        batch_size: Responses in one forward.
        batch_tokens: Padded tokens in one forward, in place of batch_size.
        overwrite: Replace an output that exists.
        ensemble: Further models, as [RUN_B,RUN_C]; each reads and scores every response, and the rewards are combined.
        combine: What is made of the models' rewards of a response: mean, minimum or mean_minus_variance (over the
            models, divided by their number). Rewards are taken as each model gives them: where models were trained
            apart, their scales and offsets are apart too.
    """
    names = {"--model": [model], "--ensemble": ensemble or []}
    if combine != "mean" and not ensemble:
        raise UserError(f"--combine {combine} needs further models: name them by --ensemble")
    _check(names, output, max_length, batch_size, batch_tokens, overwrite)
    rows = open_source(input, "--input").rows()
    first = next(rows, None)  # a file that cannot be read at all is found before the model is loaded
    if first is None:
        raise UserError(f"--input: {input} has no rows")
    rows = chain([first], rows)

    models = [_load(name, key, dtype, max_length) for key, given in names.items() for name in given]
    scorers: list[tuple[Encode, Score]] = [
        (loaded.encode, partial(loaded.score_rows, batch_size=batch_size, batch_tokens=batch_tokens))
        for loaded in models
    ]

    total = unusable = 0
    with _replacing(Path(output)) as file, _progress() as advance:
        while chunk := [_read(where, content) for where, content in islice(rows, CHUNK)]:
            _score(chunk, scorers, combine)
            for row in chunk:
                file.write(_line(row.output()))
                if row.problem is not None:
                    unusable += 1
                    print(f"warning: {row.where}: {row.problem}; its rewards are null", file=sys.stderr)
            total += len(chunk)
            advance(len(chunk))
        if total == unusable:
            raise UserError(f"--input: {input} holds no row that can be scored; nothing was written")
    if unusable:
        print(f"warning: {unusable} of {total} rows have null rewards", file=sys.stderr)
    print(f"scored {total - unusable} rows: {output}")


def _load(name: str, key: str, dtype: str, max_length: int | None) -> Any:
    """The RewardModel, on a GPU if there is one; what it warns of is one line on stderr."""
    import torch

    from aplot_lightning.model.configuration import torch_dtype
    from aplot_lightning.model.reward_model import RewardModel

    torch_dtype(dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        loaded = RewardModel.from_pretrained(name, dtype=dtype, max_length=max_length, key=key)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu")


def _check(
    models: Mapping[str, Sequence[str]],
    output: str,
    max_length: int | None,
    batch_size: int,
    batch_tokens: int | None,
    overwrite: bool,
) -> None:
    """The mistakes that can be told before anything heavy is imported."""
    for name, value in {"max_length": max_length, "batch_size": batch_size, "batch_tokens": batch_tokens}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 1")
    path = Path(output)
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--output: {output} is a folder or lies in one that does not exist: name a file")
    if path.suffix == ".parquet":
        raise UserError(
            f"--output: {output} would not be Parquet, only JSONL is written: name a .jsonl or .jsonl.gz file"
        )
    if path.exists() and not overwrite:
        raise UserError(f"--output: {output} exists already: name another file or add --overwrite true")
    for key, names in models.items():
        for name in names:
            locate_model(name, key)


def _read(where: str, content: Any) -> Row:
    """What of a row is to be scored, or why it cannot be."""
    if isinstance(content, RowError):
        return Row(where, problem=str(content))
    if not isinstance(content, Mapping):
        return Row(where, problem="not a JSON object")
    row = Row(where, dict(content), _layout(content))
    try:
        for name, side in _sides(row):
            try:
                row.conversations.append(conversation_of(content.get("prompt"), side))
            except RowError as error:
                row.problem = f"{name}: {error}"
    except RowError as error:
        row.problem = str(error)
    return row


def _layout(content: Mapping[str, Any]) -> str:
    if "chosen" in content or "rejected" in content:
        return "pair"
    return next((layout for layout in ("responses", "response") if layout in content), "pair")


def _sides(row: Row) -> list[tuple[str, Any]]:
    """The responses of a row with their names; raises RowError where a field is missing."""
    names = ["chosen", "rejected"] if row.layout == "pair" else [row.layout]
    for name in names:
        if row.content.get(name) is None:
            raise RowError("missing_field", f'no "{name}"')
    if row.layout != "responses":
        return [(name, row.content[name]) for name in names]
    responses = row.content["responses"]
    if not isinstance(responses, list) or not responses:
        raise RowError("missing_field", '"responses" is not a list of responses')
    return [(f"responses[{place}]", response) for place, response in enumerate(responses)]


def _score(chunk: Sequence[Row], models: Sequence[tuple[Encode, Score]], combine: Combine) -> None:
    """Fills in the rewards of a chunk, all its conversations sorted by length together."""
    for encode, score in models:
        encoded = _encode([row for row in chunk if row.problem is None], encode)
        rewards = iter(score([tokens for _, rows in encoded for tokens in rows]))
        for row, rows in encoded:
            row.by_model.append([next(rewards) for _ in rows])
            if not all(map(isfinite, row.by_model[-1])):
                row.problem = "a reward is not finite"
    for row in chunk:
        if row.problem is None:
            row.rewards = [_combined(rewards, combine) for rewards in zip(*row.by_model, strict=True)]


def _combined(rewards: Sequence[float], combine: Combine) -> float:
    """One reward out of those of several models; that of a single one stays as it is."""
    if combine == "minimum":
        return min(rewards)
    mean = fmean(rewards)
    if combine == "mean":
        return mean
    return mean - fmean((reward - mean) ** 2 for reward in rewards)


def _encode(rows: Sequence[Row], encode: Encode) -> list[tuple[Row, list[Any]]]:
    """The tokens of every row; where a row cannot be encoded, that one gets its problem and is left out."""
    try:
        tokens = iter(encode([conversation for row in rows for conversation in row.conversations]))
        return [(row, [next(tokens) for _ in row.conversations]) for row in rows]
    except UserError as error:  # the chat template refuses a role, or the response does not fit
        if len(rows) == 1:
            rows[0].problem = str(error)
            return []
        middle = len(rows) // 2
        return _encode(rows[:middle], encode) + _encode(rows[middle:], encode)


def _line(row: dict[str, Any]) -> str:
    """One line of JSON, text as it is; escaped only where it is no valid Unicode."""
    line = json.dumps(row, ensure_ascii=False, default=str)  # Parquet may hold dates
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row, default=str)
    return line + "\n"


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """A file beside `path` that takes its place when all went well and vanishes when not."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with (
            gzip.open(part, "wt", encoding="utf-8")
            if path.suffix == ".gz"
            else part.open("w", encoding="utf-8") as file
        ):
            yield file
        part.replace(path)
    except OSError as error:
        raise UserError(f"--output: {path} could not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """A function that counts rows: a bar on a terminal, nothing in a log."""
    if not sys.stderr.isatty():
        yield lambda rows: None
        return
    from tqdm import tqdm

    with tqdm(unit=" rows", leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance
