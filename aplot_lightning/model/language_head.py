"""The language-model head of a decoder, kept beside the reward head: how probable the chosen responses' words are.

A causal language model is split as its sequence-classification sister is: the base model becomes the backbone, and what
is left, run with the backbone's states in the base model's place, gives logits exactly as the architecture does
(scaled, capped, with or without bias).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aplot_lightning.errors import UserError
from aplot_lightning.model.tokenizer import one_line
from aplot_lightning.types import Batch

CHUNK = 1024  # tokens whose logits over the vocabulary are in memory at once


class LanguageModelHead(nn.Module):
    """Summed log-probabilities of the chosen responses' tokens.

    Args:
        causal: a causal language model whose base model was taken out by `take_base`.
    """

    def __init__(self, causal: nn.Module) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        """log π(y given x), (R,) float32 in nats: the sum over positions start..end of log π(token given those before).

        Only the rows that a pair has as chosen are computed; the others get 0. Gradients reach this head and the
        backbone, from a batch without pairs too (zeros), so that data-parallel ranks stay in step. More than 1024
        tokens go through the vocabulary in parts, whose logits the backward pass computes again.

        Args:
            states: (R, length, d), the backbone's last hidden states.
            batch: with `start`. A response at position 0 has nothing before its first token, which is left out.

        Raises:
            ValueError: the batch does not say where its responses start.
        """
        if batch.start is None:
            raise ValueError("model.keep_lm_head needs batch.start, (R,): where each response begins")
        chosen = torch.zeros(batch.responses, dtype=torch.bool, device=states.device)
        chosen[batch.pairs.chosen] = True
        place = torch.arange(batch.input_ids.shape[1], device=states.device)
        inside = (place >= batch.start.clamp(min=1)[:, None]) & (place <= batch.end[:, None]) & chosen[:, None]
        row, position = inside.nonzero(as_tuple=True)
        if not len(row):  # one token that does not count keeps the graph whole
            log_probabilities = self._of_tokens(states[:1, 0], batch.input_ids[:1, 0]) * 0
            row = row.new_zeros(1)
        else:
            log_probabilities = self._of_tokens(states[row, position - 1], batch.input_ids[row, position])
        total = torch.zeros(batch.responses, dtype=log_probabilities.dtype, device=states.device)
        return total.index_add(0, row, log_probabilities)

    def _of_tokens(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The log-probability (T,) of each token (T,) from the state before it (T, d)."""
        if len(tokens) <= CHUNK:
            return self._of_chunk(states, tokens)
        parts = [
            checkpoint(self._of_chunk, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(states.split(CHUNK), tokens.split(CHUNK), strict=True)
        ]
        return torch.cat(parts)

    def _of_chunk(self, states: Tensor, tokens: Tensor) -> Tensor:
        logits = self.logits(states)
        with torch.autocast(states.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            return -nn.functional.cross_entropy(logits, tokens, reduction="none")

    def logits(self, states: Tensor) -> Tensor:
        """(T, d) -> (T, vocabulary), as the architecture computes them."""
        logits: Tensor = self.causal(inputs_embeds=states[None], use_cache=False).logits[0]
        return logits


class GivenStates(nn.Module):
    """Stands where a base model stood, and gives back the states that it is given as embeddings."""

    @property
    def decoder(self) -> GivenStates:
        return self  # OPT asks its base model for it

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Output:
        return _Output(inputs_embeds)


class _Output:
    """A base model's output that holds last hidden states and None for all else."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def take_base(causal: Any) -> tuple[Any, LanguageModelHead, int]:
    """Splits a causal language model into its base model, its head, and the size of the states between them.

    Raises:
        UserError: it has no head, or one that cannot be run on its own.
    """
    base, family = causal.base_model, causal.config.model_type
    output = causal.get_output_embeddings()
    if base is causal or output is None:
        raise UserError(
            f"model.keep_lm_head: {family} has no language-model head beside its base model; leave it false"
        )
    size = int(output.weight.shape[1])
    setattr(causal, causal.base_model_prefix, GivenStates())
    head = LanguageModelHead(causal)
    try:
        with torch.no_grad():
            head.logits(torch.zeros(1, size, dtype=output.weight.dtype, device=output.weight.device))
    except Exception as error:  # whatever an architecture does with more than states and its head
        raise UserError(
            f"model.keep_lm_head: the head of {family} does not run on states alone ({one_line(error, limit=80)}); "
            "leave it false"
        ) from error
    return base, head, size
