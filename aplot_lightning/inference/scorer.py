"""One or several reward models that score rows by chunks: tokens, batches, and what is made of their rewards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from aplot_lightning.errors import UserError
from aplot_lightning.inference.normalisation import Normalisation, normalisation_of
from aplot_lightning.inference.progress import warn
from aplot_lightning.inference.rows import Row

if TYPE_CHECKING:
    import numpy as np

    from aplot_lightning.model.reward_model import RewardModel

Combine = Literal["mean", "minimum", "mean_minus_variance"]
Encoded = list[tuple[Row, "list[np.ndarray]"]]  # rows that one model can read, each conversation as tokens

# Tokens of one forward where the user says nothing: activations that stay in a processor's cache, or fill a GPU
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
DIGESTED = 1 << 20  # bytes of each weight tensor that tell models apart


@dataclass(frozen=True)
class Scorer:
    """Models on their device, ready to score.

    Attributes:
        models: at least one.
        combine: what is made of their rewards of a response.
        batch_size: responses in one forward; None for a number by tokens.
        batch_tokens: tokens in one forward, padding among them; None for `BATCH_TOKENS` where `batch_size` is None too.
        normalisations: one a model, applied before they are combined; empty for rewards as the models give them.
    """

    models: list[RewardModel]
    combine: Combine = "mean"
    batch_size: int | None = None
    batch_tokens: int | None = None
    normalisations: tuple[Normalisation, ...] = ()

    @staticmethod
    def load(
        names: Sequence[tuple[str, str]],
        *,
        dtype: str = "float32",
        max_length: int | None = None,
        normalise: bool = False,
        combine: Combine = "mean",
        batch_size: int | None = None,
        batch_tokens: int | None = None,
    ) -> Scorer:
        """Reads models; what they warn of is one line on stderr.

        Args:
            names: (model, the option that named it) each.
            dtype: of the backbones.
            max_length: tokens of a prompt with one response; None for the models' own.
            normalise: rewards by each model's own mean and scale.
            combine, batch_size, batch_tokens: as in the class.

        Raises:
            UserError: one cannot be read, or has no mean and scale to normalise by.
        """
        models = [load_model(name, key, dtype, max_length) for name, key in names]
        found = [normalisation_of(name, key) for name, key in names] if normalise else []
        return Scorer(models, combine, batch_size, batch_tokens, tuple(found))

    def encode(self, chunk: Sequence[Row]) -> list[Encoded]:
        """The tokens of a chunk for each model; rows that one of them cannot read get their problem."""
        return [_encode([row for row in chunk if row.problem is None], model) for model in self.models]

    def score(self, chunk: Sequence[Row], encoded: Sequence[Encoded]) -> None:
        """Fills in the rewards of a chunk: all of its conversations sorted by length together, each text once.

        The same chunk gives the same bits, whatever was scored before it.
        """
        for place, (model, rows) in enumerate(zip(self.models, encoded, strict=True)):
            normalisation = self.normalisations[place] if self.normalisations else None
            rewards = iter(self._rewards(model, [tokens for _, several in rows for tokens in several]))
            for row, several in rows:
                own = [next(rewards) for _ in several]
                if not all(map(isfinite, own)):
                    row.problem = "a reward is not finite"
                row.by_model.append(own if normalisation is None else list(map(normalisation, own)))
        for row in chunk:
            if row.problem is None:
                row.rewards = [combined(rewards, self.combine) for rewards in zip(*row.by_model, strict=True)]

    def _rewards(self, model: RewardModel, rows: Sequence[np.ndarray]) -> list[float]:
        """One reward a row. Rows of the same tokens have the very same, so that ties are seen as ties."""
        distinct: dict[bytes, int] = {}
        places = [distinct.setdefault(row.tobytes(), len(distinct)) for row in rows]
        first = dict(zip(reversed(places), reversed(rows), strict=True))
        budget = self.batch_tokens
        if budget is None and self.batch_size is None:
            budget = BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cuda"])
        found = model.score_rows(
            [first[place] for place in range(len(distinct))], batch_size=self.batch_size or 1, batch_tokens=budget
        )
        return [found[place] for place in places]

    def fingerprint(self) -> list[str]:
        """A hex digest a model of what decides its rewards: weights (the beginning of each tensor) and tokenizer."""
        return [_fingerprint(model) for model in self.models]


def combined(rewards: Sequence[float], combine: Combine) -> float:
    """One reward out of those of several models; that of a single one stays as it is."""
    if combine == "minimum":
        return min(rewards)
    mean = fmean(rewards)
    if combine == "mean":
        return mean
    return mean - fmean((reward - mean) ** 2 for reward in rewards)


def load_model(name: str, key: str, dtype: str = "float32", max_length: int | None = None) -> RewardModel:
    """The RewardModel, on a GPU if there is one; what it warns of is one line on stderr.

    Args:
        name, dtype, max_length, key: as in `RewardModel.from_pretrained`.

    Raises:
        UserError: it cannot be read.
    """
    import torch

    from aplot_lightning.model.configuration import emulation
    from aplot_lightning.model.reward_model import RewardModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    slow = emulation(dtype, device)
    if slow is not None:
        warn(f"--dtype: {slow}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        loaded = RewardModel.from_pretrained(name, dtype=dtype, max_length=max_length, key=key)
    for warning in caught:
        warn(warning.message)
    return loaded.to(device)


def _encode(rows: Sequence[Row], model: RewardModel) -> Encoded:
    """The tokens of every row; where a row cannot be encoded, that one gets its problem and is left out."""
    try:
        tokens = iter(model.encode([conversation for row in rows for conversation in row.conversations]))
        return [(row, [next(tokens) for _ in row.conversations]) for row in rows]
    except UserError as error:  # the chat template refuses a role, or the response does not fit
        if len(rows) == 1:
            rows[0].problem = str(error)
            return []
        middle = len(rows) // 2
        return _encode(rows[:middle], model) + _encode(rows[middle:], model)


def _fingerprint(model: Any) -> str:
    import torch

    from aplot_lightning.data.encoding import ConversationEncoder

    state = sha256(ConversationEncoder(model.tokenizer, model.max_length, model.truncation).fingerprint().encode())
    for name, tensor in sorted(model.state_dict().items()):
        beginning = tensor.detach().reshape(-1)[: DIGESTED // tensor.element_size()]
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        state.update(beginning.cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()
