"""Whether a backbone can be run on packed rows, found out by doing it, and the run itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from aplot_lightning.data.batching import pack_row, pad_rows
from aplot_lightning.model.scoring import evaluating
from aplot_lightning.model.tokenizer import one_line
from aplot_lightning.model.transformers_internals import attention_of
from aplot_lightning.model.tree.attention import NAME, NotPackable, PackedRow, register
from aplot_lightning.model.tree.last_layer import score_all, score_only
from aplot_lightning.types import Pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# largest difference between packed and padded states, as a share of their size
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Packing:
    """How a backbone stands to packed rows.

    Attributes:
        refusal: why it takes none; None where it does.
        last_layer: the path of the last layer, where it gives the scored tokens alone; else None.
    """

    refusal: str | None
    last_layer: str | None = None


def run_packed(model: Any, input_ids: Tensor, row: PackedRow, *, scored_only: bool) -> Tensor:
    """The states at the scored tokens of a packed row, (R, d) in the model's dtype.

    Args:
        model: one that `start_packing` made ready.
        input_ids: (1, T) int64.
        row: how these tokens hang together.
        scored_only: the last layer gives the scored tokens alone, as `start_packing` says.
    """
    # a mask in four dimensions is taken as it is, so none is built; the attention does not look at it
    no_mask = torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=input_ids.device)
    output = model(input_ids=input_ids, attention_mask=no_mask, position_ids=row.position_ids, packed=row)
    states: Tensor = output.last_hidden_state[0]
    # a copy, not a view: sharded modules put hooks on what they give out
    return states.clone() if scored_only else states.index_select(0, row.end)


def start_packing(model: PreTrainedModel) -> Packing:
    """Makes a decoder take packed rows beside padded ones, if it gives the same states on both; else leaves it alone.

    Tried with a few tokens on the model's own weights, in evaluation mode and without gradients; random states stay.

    Args:
        model: a decoder's base model.
    """
    chosen = attention_of(model.config)
    try:
        _check_config(model.config.get_text_config(), chosen)
        with _undisturbed(model):
            probe = _Probe(model)
            register()
            model.set_attn_implementation(NAME)
            layers = probe.check_all_tokens()
            return Packing(None, probe.shorten_last_layer(layers[-1]))
    except Exception as error:  # whatever an architecture does with what it does not know
        if chosen and attention_of(model.config) == NAME:
            model.set_attn_implementation(chosen)
        return Packing(str(error) if isinstance(error, NotPackable) else one_line(error, limit=80))


def _check_config(config: Any, attention: str | None) -> None:
    if getattr(config, "attn_logit_softcapping", None):
        raise NotPackable("its attention has a soft cap")
    if attention != "sdpa":
        raise NotPackable(f"its attention is {attention}, not sdpa")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise NotPackable(f"it has layers of {min(kinds)}")
    if getattr(config, "attention_chunk_size", None):
        raise NotPackable("its attention is cut into chunks")


class _Probe:
    """A few conversations whose states are known, to be had again from one packed row."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config.get_text_config()
        weight = next(model.parameters())
        if weight.device.type == "meta":
            raise NotPackable("it has no weights yet")
        self.tolerance = TOLERANCE.get(weight.dtype, 0.0)
        ids = (np.arange(40) * 7 + 3) % self.config.vocab_size
        one = [ids[:6], ids[6:9], ids[9:10], ids[10:14]]
        other = [ids[:2], ids[20:21], ids[21:26]]
        nothing = torch.zeros(0, dtype=torch.int64)
        self.batch = pack_row([one, other], Pairs(nothing, nothing), least_root=1).to(weight.device)
        rows = [np.concatenate([prefix, suffix]) for prefix, *suffixes in (one, other) for suffix in suffixes]
        # at the end of a row, padding is out of every token's sight
        padded, mask, end = (tensor.to(weight.device) for tensor in pad_rows(rows, 0))
        states = model(input_ids=padded, attention_mask=mask).last_hidden_state
        self.expected = states[torch.arange(len(rows), device=states.device), end].double()

    def check_all_tokens(self) -> list[nn.Module]:
        """Raises NotPackable where a packed row gives other states; gives the attention layers as they were called."""
        row = _WatchedRow.of(self.batch)
        agrees = self._agrees(row, scored_only=False)
        if not row.calls:
            raise NotPackable("it computes attention in a way of its own")
        if not agrees:
            raise NotPackable("packed rows give it other states")
        windows = sum(window is not None for _, window in row.calls)
        kinds = getattr(self.config, "layer_types", None)
        sliding = getattr(self.config, "sliding_window", None) and getattr(self.config, "use_sliding_window", True)
        if windows < (kinds.count("sliding_attention") if kinds else bool(sliding)):
            raise NotPackable("its layers do not say how wide their windows are")
        return [module for module, _ in row.calls]

    def shorten_last_layer(self, attention: nn.Module) -> str | None:
        """Lets the layer around the last attention give the scored tokens alone; its path, or None if it cannot."""
        name = next(name for name, module in self.model.named_modules() if module is attention)
        path = name.rpartition(".")[0]
        layer = self.model.get_submodule(path)
        score_only(layer)
        try:
            agrees = self._agrees(PackedRow.of(self.batch), scored_only=True)
        except Exception:  # a layer that takes what is not known here is run in full
            agrees = False
        if not agrees:
            score_all(layer)
        return path if agrees else None

    def _agrees(self, row: PackedRow, scored_only: bool) -> bool:
        states = run_packed(self.model, self.batch.input_ids, row, scored_only=scored_only).double()
        if states.shape != self.expected.shape:
            return False
        difference = (states - self.expected).norm(dim=1)
        return bool((difference <= self.tolerance * self.expected.norm(dim=1)).all())


class _WatchedRow(PackedRow):
    """Writes down which attention layers were called, and their windows."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.calls: list[tuple[nn.Module, int | None]] = []

    def attend(self, module: nn.Module, *tensors: Tensor, window: int | None, options: dict[str, Any]) -> Tensor:
        self.calls.append((module, window))
        return super().attend(module, *tensors, window=window, options=options)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    from aplot_lightning.model.configuration import quiet_transformers

    device = next(model.parameters()).device.type
    with (
        evaluating(model),
        quiet_transformers(),
        torch.no_grad(),
        torch.autocast("cpu" if device == "meta" else device, enabled=False),
    ):
        yield
