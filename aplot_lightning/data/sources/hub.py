"""Data sets on the Hugging Face hub, or what this machine has kept of them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from aplot_lightning.data.sources.source import GIVE_A_FILE, Row, Source, fingerprint_of, one_line
from aplot_lightning.data.sources.stream import Place, Stream
from aplot_lightning.errors import UserError

PATIENCE = 5.0  # seconds to wait for the hub's first answer


class HubDataset(Source):
    """A split of a data set on the Hugging Face hub, or of a folder that `datasets` can load.

    Args:
        name: the data set, such as ``Anthropic/hh-rlhf``.
        split: the split, or a slice of it as `datasets` writes it (``train[:1000]``).
        config: the data set's configuration, where it has several.
    """

    def __init__(self, name: str, split: str = "train", config: str | None = None) -> None:
        self.dataset = name
        self.split = split
        self.config = config
        self.name = f"{name}:{split}"
        self._loaded: Any = None

    def rows(self) -> Iterator[Row]:
        return self._numbered(self._load(), 0)

    def stream(self, place: Place | None = None) -> Stream:
        """The rows from a place on, fetched as they are asked for; `datasets` goes to the place at once."""
        dataset = self._open(streaming=True)
        read = 0
        if place is not None:
            dataset.load_state_dict(place["inner"])
            read = int(place["read"])
        return Stream(self._numbered(dataset, read), read, dataset.state_dict)

    def _numbered(self, dataset: Iterable[Any], before: int) -> Iterator[Row]:
        rows = iter(dataset)
        for number in count(before + 1):
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # a stream may break off where its rows are fetched
                raise self._unreadable(error) from error
            yield f"{self.name}:{number}", row

    def fingerprint(self) -> str:
        """Hex digest of the names and of the fingerprint that `datasets` gives the split."""
        return fingerprint_of(type(self).__qualname__, self.name, self.config or "", self._load()._fingerprint)

    def _load(self) -> Any:
        """The split, memory-mapped by `datasets`. Raises UserError where it cannot be had."""
        if self._loaded is None:
            self._loaded = self._open(streaming=False)
        return self._loaded

    def _open(self, streaming: bool) -> Any:
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        try:
            with _own_copies_only_if_out_of_reach():
                return datasets.load_dataset(self.dataset, self.config, split=self.split, streaming=streaming)
        except Exception as error:  # the hub, its client, and each builder raise their own
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(
            f"{self.dataset!r} is no file, and its split {self.split!r} cannot be read from the hub "
            f"({one_line(error)}): check the name and the network, or {GIVE_A_FILE}"
        )


@contextmanager
def _own_copies_only_if_out_of_reach() -> Iterator[None]:
    """Where the hub does not answer, its client's offline mode for a while; else it tries again for half a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    if getproxies():  # the proxy alone knows
        return True
    address = urlsplit(endpoint)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
