"""A source that is read while it is trained on, for data larger than the disk.

Rows are read in blocks; a block's rows are parsed, encoded and shuffled together and make up optimizer batches of their
own. The place of a run in its stream is that of its block's first row and of the next batch in the block: a few
numbers, with which a stopped run goes on to the bit. After the last row the stream begins again, in another order.

What needs all rows at once is not done: rows of a stream that contradict or repeat each other are trained on. The data
report, and the sets that are held out of the training prompts, are those of its first block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from aplot_lightning.data.batching import Layout, collate, rank_micro_batches
from aplot_lightning.data.comparisons import Comparison, RowError, parse_comparison
from aplot_lightning.data.encoded import EncodedComparisons
from aplot_lightning.data.encoding import ConversationEncoder
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.sources.source import Row, Source
from aplot_lightning.errors import UserError
from aplot_lightning.types import Batch

if TYPE_CHECKING:
    import lightning as L

BLOCK = 10_000  # rows of a block, within which pairs are shuffled


class Head(Source):
    """The first block of a stream, as a source of its own.

    Args:
        source: the streamed one.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.name
        self.path = source.path

    def __str__(self) -> str:
        return str(self.source)

    def rows(self) -> Iterator[Row]:
        return iter(self.source.stream().take(BLOCK))


def take_stream(opened: dict[str, list[Source]]) -> Source | None:
    """The streamed source among those of a data module, if any; its first block stays in its place.

    Args:
        opened: the sources of every config key.

    Raises:
        UserError: a source of another key than data.train is streamed, or one beside others.
    """
    for key, sources in opened.items():
        if any(source.streaming for source in sources) and (key != "data.train" or len(sources) > 1):
            alone = "is the only one of data.train" if key == "data.train" else "belongs to data.train"
            raise UserError(f"{key}: a source with streaming: true {alone}; leave streaming out here")
    (source, *_) = opened["data.train"]
    if not source.streaming:
        return None
    opened["data.train"] = [Head(source)]
    return source


@dataclass(eq=False)
class StreamedBatches(IterableDataset):
    """This rank's share of one optimizer batch after another, each a list of micro-batches, without an end.

    Every rank reads and encodes all rows and takes its share of each batch, so that ranks agree without talking.

    Attributes:
        source: the rows.
        encoder: makes tokens of them.
        ledger: the account of the rows of the first pass, as far as they have been read.
        layout: of the micro-batches.
        batch_size: pairs in one optimizer batch: a block is cut evenly into batches of that and seldom more.
        seed: of the shuffling.
        held_out: whether a comparison belongs to a held-out set.
        leaks: prompt keys of the evaluation sets.
        step: optimizer steps done, asked for when iteration starts.
        on_bad_row: skip and count rows that cannot be used, or stop at the first (error).
        rank: this rank.
        world: number of ranks.
    """

    name: ClassVar[str] = "train"

    source: Source
    encoder: ConversationEncoder
    ledger: SourceLedger
    layout: Layout
    batch_size: int
    seed: int
    held_out: Callable[[Comparison], bool]
    leaks: Set[bytes]
    step: Callable[[], int]
    on_bad_row: Literal["skip", "error"] = "skip"
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        # of the batches that come after so many steps: the latest two that were given out
        self._places: dict[int, dict[str, Any]] = {0: {"pass": 0, "block": 0, "batch": 0, "rows": None}}

    def state_dict(self, step: int) -> dict[str, Any]:
        """The place of the batch after `step` optimizer steps, as primitives."""
        return {"step": step, "place": self._places[step], "account": _account(self.ledger)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration begins at this place."""
        self._places = {state["step"]: state["place"]}
        self.ledger.read, self.ledger.refused = state["account"]["read"], dict(state["account"]["refused"])

    def __iter__(self) -> Iterator[list[Batch]]:
        # Lightning asks once before it restores the number of steps, and then again: there is one place by then
        step = self.step() if self.step() in self._places else next(iter(self._places))
        place = self._places[step]
        stream = self.source.stream(place["rows"])
        usable = step > 0
        while True:
            start = stream.read
            rows = stream.take(BLOCK)
            if not rows:
                if not usable:
                    raise UserError(f"data.train: no row of {self.source} can be used: {self.ledger.reasons()}")
                stream, usable = self.source.stream(), False
                place = {**place, "pass": place["pass"] + 1, "batch": 0, "rows": None}
                continue
            block = self._encode(rows, counts=place["pass"] == 0 and start >= self.ledger.read)
            batches = self._batches(block, place["block"])
            for number in range(place["batch"], len(batches)):
                usable = True
                self._places = {step: {**place, "batch": number}, step + 1: {**place, "batch": number + 1}}
                cut = rank_micro_batches(block, batches[number], self.layout, self.rank, self.world)
                yield [collate(block, part, self.layout) for part in cut]
                step += 1
            place = {"pass": place["pass"], "block": place["block"] + 1, "batch": 0, "rows": stream.place()}

    def _encode(self, rows: list[Row], counts: bool) -> EncodedComparisons:
        """The usable comparisons of a block; its rows are counted when they are read for the first time."""
        ledger = self.ledger if counts else SourceLedger(self.source.name)
        training = [each for each in self._parsed(rows, ledger) if not self.held_out(each)]
        return self.encoder.encode(training, ledger, self.leaks)

    def _parsed(self, rows: list[Row], ledger: SourceLedger) -> Iterator[Comparison]:
        for where, row in rows:
            ledger.read += 1
            try:
                if isinstance(row, RowError):
                    raise row
                yield parse_comparison(row, where, self.source.name)
            except RowError as error:
                if self.on_bad_row == "error":
                    raise UserError(
                        f"data.train: {where}: {error} ({error.kind}): mend or remove this row of {self.source}, or "
                        "set data.on_bad_row to skip"
                    ) from error
                ledger.refuse(error.kind, where, str(error))

    def _batches(self, block: EncodedComparisons, number: int) -> list[np.ndarray]:
        """The comparisons of each optimizer batch of a block, in a random order; none is empty."""
        order = np.random.default_rng([self.seed, number]).permutation(len(block))
        counts = np.diff(block.first_pair)[order]
        total = int(counts.sum())
        batches = max(1, total // self.batch_size)
        batch_of = (np.cumsum(counts) - counts) * batches // max(total, 1)
        return np.split(order, np.flatnonzero(np.diff(batch_of)) + 1) if total else []


class TrainingStream:
    """The stream of a run: known from `setup` on, read once there is a trainer, its place kept in checkpoints.

    Args:
        options: of `StreamedBatches`, but for those that the trainer and the model know.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._trainer: L.Trainer | None = None
        self._batches: StreamedBatches | None = None
        self._restored: dict[str, Any] | None = None

    def loader(self, layout: Layout, trainer: L.Trainer) -> DataLoader:
        """The optimizer batches from the trainer's step, or the restored place, on."""
        self._trainer = trainer
        self._batches = StreamedBatches(
            **self._options,
            layout=layout,
            step=lambda: trainer.global_step,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        if self._restored is not None:
            self._batches.load_state_dict(self._restored)
        return DataLoader(self._batches, batch_size=None, pin_memory=torch.cuda.is_available())

    def state_dict(self) -> dict[str, Any]:
        """The place after the trainer's steps, as primitives; nothing before there is a loader."""
        if self._batches is None or self._trainer is None:
            return {}
        return {"stream": self._batches.state_dict(self._trainer.global_step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration begins at this place, of the loader that there is or is made later."""
        self._restored = state.get("stream")
        if self._batches is not None and self._restored is not None:
            self._batches.load_state_dict(self._restored)


def _account(ledger: SourceLedger) -> dict[str, Any]:
    return {"read": ledger.read, "refused": dict(ledger.refused)}
