"""Oracle: one autograd graph over the whole optimizer batch, for every head and the language-model head.

The objective reads every tensor that the model gives, and couples the whole batch, so that the exact step takes its two
passes and a tensor that got lost between them would be seen.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from aplot_lightning.model.heads import MLP, Bottleneck, Ensemble, Head, QualityAndLength, WithConfidence, WithVariance
from aplot_lightning.model.reward_model import RewardModel
from aplot_lightning.objectives import Objective, Regularizer
from aplot_lightning.training.gradient_cache import whole_batch_step
from aplot_lightning.types import Batch, Pairs, Scores

PAIRS, STEPS, LENGTH = 12, 3, 7
CASES: dict[str, tuple[Head | None, bool]] = {
    "linear": (None, False),
    "mlp": (MLP(hidden_size=6), False),
    "with_variance": (WithVariance(), False),
    "with_confidence": (WithConfidence(), False),
    "quality_and_length": (QualityAndLength(), False),
    "ensemble": (Ensemble(3), False),
    "bottleneck": (Bottleneck(4), False),
    "language_model": (None, True),
    "bottleneck_and_language_model": (Bottleneck(4), True),
}
DETERMINISTIC = [name for name in CASES if not name.startswith("bottleneck")]


class ReadsAll(Regularizer):
    """The squared mean of every tensor over the batch, chosen and rejected apart."""

    separable = False

    def forward(self, loss: Tensor, weights: Tensor, chosen: Scores, rejected: Scores, columns: dict) -> Tensor:
        terms = [
            ((chosen.tensors[name] - 0.7 * rejected.tensors[name] - 0.1).mean(0) ** 2).mean()
            for name in sorted(chosen.tensors)
        ]
        return 0.3 * torch.stack(terms).sum()


@pytest.fixture(scope="module")
def backbone(saved, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = AutoConfig.for_model("llama", vocab_size=40, initializer_range=0.3, tie_word_embeddings=True, **sizes)
    config.save_pretrained(folder)
    for file in saved("llama").glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def batches(seed: int, sizes: list[int]) -> list[Batch]:
    """An optimizer batch of random pairs, cut into micro-batches of `sizes` pairs."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 40, (PAIRS, 2, LENGTH), generator=generator)
    starts = torch.randint(1, 4, (PAIRS, 2), generator=generator)
    parts, first = [], 0
    for size in sizes:
        pairs = slice(first, first + max(size, 1))
        rows, start = tokens[pairs].reshape(-1, LENGTH), starts[pairs].reshape(-1)
        place = torch.arange(size)
        columns = {"index": torch.arange(first, first + size)}
        ends = torch.full((len(rows),), LENGTH - 1)
        parts.append(Batch(rows, torch.ones_like(rows), ends, Pairs(2 * place, 2 * place + 1, columns), start))
        first += size
    return parts


def train(backbone: Path, name: str, sizes: list[int], oracle: bool = False) -> dict[str, Tensor]:
    head, keep_lm_head = CASES[name]
    torch.manual_seed(1)
    model = RewardModel.from_backbone(
        str(backbone), head=head, keep_lm_head=keep_lm_head, head_seed=2, dropout=0.0 if name in DETERMINISTIC else 0.2
    )
    objective = Objective(regularizers=[ReadsAll()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(3)
    for step in range(STEPS):
        parts = batches(step, sizes)
        model.zero_grad()
        if oracle:
            scores = [model(part) for part in parts]
            assert set(scores[0].tensors) == model.tensor_names
            pairs = Pairs.concatenate([part.pairs for part in parts], [len(score) for score in scores])
            loss = objective(Scores.concatenate(scores), pairs).loss
        else:
            loss = whole_batch_step(model, objective, parts).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return {key: tensor.detach() for key, tensor in model.state_dict().items()} | {"loss": loss.detach()}


@pytest.mark.parametrize("sizes", [[12], [4] * 3, [6, 0, 1, 5]], ids=str)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_weights_equal_those_of_one_graph_over_the_whole_batch(backbone: Path, name: str, sizes: list[int]) -> None:
    expected = train(backbone, name, [PAIRS], oracle=True)
    torch.testing.assert_close(train(backbone, name, sizes), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [[12], [4] * 3, [6, 0, 1, 5]], ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name not in DETERMINISTIC])
def test_samples_and_dropout_repeat_themselves_in_the_second_pass(backbone: Path, name: str, sizes: list[int]) -> None:
    expected = train(backbone, name, sizes, oracle=True)
    torch.testing.assert_close(train(backbone, name, sizes), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_tensor_of_a_head_counts(backbone: Path, name: str) -> None:
    """The oracle itself: a loss that left a head's tensors out would hide what the test above is to see."""
    head, keep_lm_head = CASES[name]
    model = RewardModel.from_backbone(str(backbone), head=head, keep_lm_head=keep_lm_head)
    scores = model(batches(0, [PAIRS])[0]).detach().map(lambda tensor: tensor.requires_grad_())
    Objective(regularizers=[ReadsAll()])(scores, batches(0, [PAIRS])[0].pairs).loss.backward()
    assert {key for key, tensor in scores.tensors.items() if tensor.grad.abs().sum() > 0} == model.tensor_names
