"""What a step computes, counted against loops over the attention pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aplot_lightning import RewardModel
from aplot_lightning.data.batching import pack_row, pad_rows
from aplot_lightning.model.lora import LoRA
from aplot_lightning.training.flops import seen_pairs, training_flops
from aplot_lightning.types import Batch, Pairs

NOTHING = Pairs(*[torch.zeros(0, dtype=torch.int64)] * 2)


def packed(root: int) -> tuple[Batch, list[int]]:
    ids = np.arange(2, 40, dtype=np.int32)
    comparisons = [[ids[:9], ids[9:11], ids[11:18]], [ids[:root], ids[20:21], ids[21:25], ids[25:27]]]
    return pack_row(comparisons, NOTHING, least_root=1), [9 + 2, 9 + 7, root + 1, root + 4, root + 2]


@pytest.mark.parametrize("root", [0, 5])
def test_pairs_of_tokens_that_see_one_another(root: int) -> None:
    batch, lengths = packed(root)
    separate = sum(length * (length + 1) // 2 for length in lengths)
    shared = sum(n * (n + 1) // 2 for n in (9, root, root))  # prefixes that are not computed again
    again = root * (root + 1) // 2  # the root, inside the first prefix, is not computed again either
    assert seen_pairs(batch) == separate - shared - again


def test_padded_rows_count_their_padding() -> None:
    batch = Batch(*pad_rows([np.arange(5), np.arange(3)], 0), NOTHING, lengths=(5, 3))
    assert (seen_pairs(batch), batch.computed_tokens, batch.padding) == (30, 10, 2)


def test_operations_of_a_step() -> None:
    model = RewardModel.from_backbone("world-decoder")
    config = model.backbone.config
    layers = model.backbone.model.layers
    of_layer = [sum(p.numel() for p in layer.parameters() if p.ndim > 1) for layer in layers]
    batch, _ = packed(0)
    padded = Batch(*pad_rows([np.arange(5), np.arange(3)], 0), NOTHING)
    attention = 12 * config.num_hidden_layers * config.hidden_size
    assert training_flops(model.backbone, [padded]) == 6 * sum(of_layer) * 10 + attention * 30
    assert model.packs
    tokens = batch.computed_tokens
    assert training_flops(model.backbone, [batch]) == 6 * sum(of_layer[:-1]) * tokens + attention * seen_pairs(batch)


def test_frozen_weights_take_no_gradients_of_their_own() -> None:
    model = RewardModel.from_backbone("world-decoder")
    config = model.backbone.config
    weights = sum(p.numel() for layer in model.backbone.model.layers for p in layer.parameters() if p.ndim > 1)
    padded = Batch(*pad_rows([np.arange(5), np.arange(3)], 0), NOTHING)
    attention = config.num_hidden_layers * config.hidden_size * 30
    model.add_lora(LoRA(rank=2))
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert training_flops(model.backbone, [padded]) == 4 * weights * 10 + 6 * adapters * 10 + 12 * attention
    model = RewardModel.from_backbone("world-decoder")
    model.freeze_backbone()
    assert training_flops(model.backbone, [padded]) == 2 * weights * 10 + 4 * attention
