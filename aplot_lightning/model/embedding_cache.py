"""Embeddings of a frozen backbone, computed once and kept on disk.

An entry holds the embeddings of a stretch of a data set. Its key is made of all that decides them: the backbone's
weights and config, how it is computed, and the tokens. A run that was interrupted keeps the entries it has finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from aplot_lightning.data.batching import Layout, collate, rank_micro_batches
from aplot_lightning.data.encoded import EncodedComparisons, stretches
from aplot_lightning.data.preparation import Cache
from aplot_lightning.data.preparation.arrays import ArrayWriter
from aplot_lightning.data.preparation.cache import FULL
from aplot_lightning.errors import UserError
from aplot_lightning.model.configuration import config_to_dict
from aplot_lightning.model.reward_model import RewardModel
from aplot_lightning.model.scoring import evaluating

LEVEL = "embeddings"
NAME = "embeddings"  # of the array in an entry
CONVERSATIONS = 1 << 13  # in an entry, or a few more

Advance = Callable[[int], object]


class StoredEmbeddings:
    """The embeddings of R conversations in several files, mapped into memory: ``stored[rows]`` is (n, d) float32.

    It may be pickled, and used by forked processes at once.

    Args:
        paths: the files, of which each holds a stretch of the conversations.
        first: (len(paths) + 1,) int64, the first conversation of each, and R.
        width: d.
        dtype: of the numbers in the files.
    """

    def __init__(self, paths: Sequence[Path], first: np.ndarray, width: int, dtype: np.dtype) -> None:
        self.paths = list(paths)
        self.first = first
        self.width = width
        self.dtype = dtype
        self._maps: list[np.ndarray] | None = None

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self._maps is None:
            # plain arrays: NumPy's own class for maps is slow to index
            maps = [np.memmap(path, self.dtype, mode="r").view(np.ndarray) for path in self.paths]
            self._maps = [values.reshape(-1, self.width) for values in maps]
        if len(self._maps) == 1:
            return self._maps[0][rows].astype(np.float32, copy=False)  # indexing has made a copy
        result = np.empty((len(rows), self.width), dtype=np.float32)
        places = np.searchsorted(self.first, rows, side="right") - 1
        for place in np.unique(places):
            own = places == place
            result[own] = self._maps[place][rows[own] - self.first[place]]
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredEmbeddings, (self.paths, self.first, self.width, self.dtype)


class EmbeddingCache:
    """Gives the embeddings of encoded comparisons, from disk or from the backbone.

    Args:
        model: the reward model with the frozen backbone, on the device where it is to run.
        cache: where entries are kept.
        dtype: of the numbers on disk.
        precision: a name for what `context` does to the numbers.
        context: entered around every forward, such as autocast.
        rank: this rank; ranks share the work where each could do all of it.
        world: number of ranks.
        agree: for a model whose ranks must run together: whether any rank says so.
        progress: opened with the number of conversations that are to be computed, where there are any; gives a function
            that is told how many are done.

    Raises:
        UserError: the disk is full, or the dtype cannot hold the embeddings.
    """

    def __init__(
        self,
        model: RewardModel,
        cache: Cache,
        *,
        dtype: Literal["float32", "float16"],
        precision: str,
        context: Callable[[], AbstractContextManager[Any]],
        progress: Callable[[int], AbstractContextManager[Advance]],
        rank: int = 0,
        world: int = 1,
        agree: Callable[[bool], bool] | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.dtype = np.dtype(dtype)
        self.context = context
        self.progress = progress
        self.rank, self.world = rank, world
        self.agree = agree
        self._digest = backbone_digest(model, precision)

    def embed(self, encoded: EncodedComparisons, layout: Layout) -> StoredEmbeddings:
        """The embeddings of all conversations, computed where they are not on disk.

        Args:
            encoded: comparisons without embeddings.
            layout: of the micro-batches that the backbone is given.
        """
        cuts = _cuts(encoded)
        stretch = [range(*ends) for ends in pairwise(cuts.tolist())]
        keys = [self._key(encoded, each) for each in stretch]
        found = [self.cache.find(LEVEL, key) for key in keys]
        missing = [place for place, path in enumerate(found) if self._any_rank(path is None)]
        if missing:
            first = encoded.first_response
            count = sum(int(first[stretch[place].stop] - first[stretch[place].start]) for place in missing)
            with self.progress(count) as advance:
                for place in self._turns(missing):
                    build = partial(self._compute, encoded, stretch[place], layout, advance)
                    found[place] = self._entry(keys[place], build, int(first[-1]))
        paths = [path / f"{NAME}.bin" for path in found if path is not None]
        return StoredEmbeddings(paths, encoded.first_response[cuts], self.model.hidden_size, self.dtype)

    def _key(self, encoded: EncodedComparisons, stretch: range) -> str:
        tokens = encoded.token_digest(stretch.start, stretch.stop)
        return sha256(f"{self._digest} {self.dtype} {tokens}".encode()).hexdigest()

    def _any_rank(self, missing: bool) -> bool:
        return missing if self.agree is None else self.agree(missing)

    def _turns(self, missing: list[int]) -> list[int]:
        """Missing entries in this rank's order: its share, then what others may have left undone or are still at."""
        if self.agree is not None:
            return missing
        shares = [missing[(self.rank + other) % self.world :: self.world] for other in range(self.world)]
        return [place for share in shares for place in share]

    def _entry(self, key: str, compute: Callable[[], np.ndarray], conversations: int) -> Path:
        """Builds one entry, or waits for the rank that does. Ranks that run together must not wait for each other."""
        embeddings = None if self.agree is None else compute()

        def build(folder: Path) -> None:
            with ArrayWriter(folder) as writer:
                writer.append({NAME: compute() if embeddings is None else embeddings})

        try:
            return self.cache.entry(LEVEL, key, build)
        except UserError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in FULL:
                raise
            size = conversations * self.model.hidden_size * self.dtype.itemsize / 1e9
            half = "; model.cache_dtype float16 takes half" if self.dtype == np.float32 else ""
            raise UserError(f"{error}; the embeddings of this set take {size:.3g} GB{half}") from error

    def _compute(self, encoded: EncodedComparisons, stretch: range, layout: Layout, advance: Advance) -> np.ndarray:
        """(n, d) embeddings of the conversations of a stretch of comparisons."""
        first = encoded.first_response
        count = int(first[stretch.stop] - first[stretch.start])
        result = np.empty((count, self.model.hidden_size), dtype=self.dtype)
        with evaluating(self.model), torch.no_grad(), self.context():
            for part in rank_micro_batches(encoded, np.arange(stretch.start, stretch.stop), layout):
                batch = collate(encoded, part, layout).to(self.model.device)
                embeddings = self.model(batch).embeddings.cpu().numpy()
                result[stretches(first, part) - first[stretch.start]] = self._narrow(embeddings)
                advance(len(embeddings))
        return result

    def _narrow(self, embeddings: np.ndarray) -> np.ndarray:
        largest = np.abs(embeddings).max()
        if np.isfinite(largest) and largest > np.finfo(self.dtype).max:
            raise UserError(
                f"model.cache_dtype: {self.dtype} cannot hold an embedding of {largest:.3g}; set it to float32"
            )
        return embeddings.astype(self.dtype, copy=False)


def backbone_digest(model: RewardModel, precision: str) -> str:
    """Hex digest of all that decides what the backbone makes of tokens; on sharded weights, all ranks must call it.

    Dropout probabilities are left out: a frozen backbone drops nothing.
    """
    about = {"config": _without_dropout(config_to_dict(model.backbone.config)), "pooling": model.pooling}
    words = {**about, "precision": precision, "code": _code_digest(), "transformers": version("transformers")}
    state = sha256(json.dumps(words, sort_keys=True).encode())
    for name, tensor in sorted(model.backbone.state_dict().items()):
        whole: Any = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # of a sharded one
        state.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        state.update(whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _without_dropout(config: Any) -> Any:
    if isinstance(config, dict):
        return {name: _without_dropout(value) for name, value in config.items() if "drop" not in name}
    return config


@cache
def _code_digest() -> str:
    """Hex digest of the code from tokens to embeddings: with other code, they are computed anew."""
    room = Path(__file__).parent
    paths = [room / "embedding_cache.py", room / "reward_model.py", room / "language_head.py"]
    paths += sorted([*(room / "backbone").rglob("*.py"), *(room / "tree").rglob("*.py")])
    state = sha256()
    for path in paths:
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


def _cuts(encoded: EncodedComparisons) -> np.ndarray:
    """Where entries begin and the last one ends, (S + 1,) int64 comparisons; whole comparisons stay together."""
    first = encoded.first_response
    entry_of = first[:-1] // CONVERSATIONS
    return np.concatenate([[0], np.flatnonzero(np.diff(entry_of)) + 1, [len(encoded)]]).astype(np.int64)
