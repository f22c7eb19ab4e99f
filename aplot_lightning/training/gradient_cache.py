"""One objective over a whole optimizer batch, however it is cut into micro-batches and ranks (gradient caching).

An objective of this project is a function of the scores of all pairs of an optimizer batch. Its gradient is exact for
any split (docs/method.md section 4, after arXiv 2101.06983):

1. score every micro-batch without gradients, keeping each one's random state;
2. gather the scores over ranks, compute the loss once, and take its derivatives with respect to the scores;
3. score each micro-batch again from its random state, now with gradients, and back-propagate those derivatives.

One micro-batch per rank needs no second forward, and neither does an objective that is a mean over pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from aplot_lightning.objectives import Objective, ObjectiveResult
from aplot_lightning.types import Batch, Pairs, Scores

Score = Callable[[Batch], Scores]
Backward = Callable[[Tensor], None]


@dataclass
class StepResult:
    """What one optimizer step computed.

    Attributes:
        loss: scalar whose value is the objective's; back-propagating it completes the gradients of the step.
        result: the objective's own result, detached.
        scores, pairs: what the objective was given, detached: the whole optimizer batch, of all ranks.
    """

    loss: Tensor
    result: ObjectiveResult
    scores: Scores
    pairs: Pairs


def whole_batch_step(
    score: Score, objective: Objective, micro_batches: Sequence[Batch], backward: Backward = torch.Tensor.backward
) -> StepResult:
    """Accumulates the gradients of all micro-batches but the last and returns the loss that completes them.

    The caller zeroes the gradients before, and back-propagates the returned loss after, exactly once. Every rank must
    call it with the same number of micro-batches.

    Args:
        score: the model with its autocast, if any.
        objective: computed in float32 or better, whatever the model's precision.
        micro_batches: this rank's share of the optimizer batch.
        backward: back-propagates the scalar of a micro-batch that is not the last, for a caller who scales it or who
            keeps the gradients of such a one from being reduced over ranks; autocast is off around it.
    """
    if objective.separable:
        return _separable_step(score, objective, micro_batches, backward)
    if len(micro_batches) == 1:
        scores = score(micro_batches[0])
        step, cotangents = _solve(objective, scores.detach(), micro_batches[0].pairs)
        step.loss = _carrier(scores, cotangents, step.result.loss)
        return step
    return _two_pass_step(score, objective, micro_batches, backward)


def abandoned_step(score: Score, micro_batches: Sequence[Batch]) -> StepResult:
    """A step whose objective could not be computed: its loss is NaN, and back-propagating it changes nothing.

    It runs the model as any step does, so that the strategies of several ranks get what they wait for.

    Args:
        score: as in `whole_batch_step`.
        micro_batches: as in `whole_batch_step`.
    """
    with torch.no_grad():
        parts = [score(batch) for batch in micro_batches[:-1]]
    last = score(micro_batches[-1])
    parts.append(last.detach())
    pairs = Pairs.concatenate([batch.pairs for batch in micro_batches], [len(part) for part in parts])
    whole = Scores.concatenate(parts)
    if _world_size() > 1:
        whole, pairs, _ = _gather(whole, pairs)
    chosen, rejected = whole.pairs(pairs)
    gaps = chosen.rewards - rejected.rewards
    result = ObjectiveResult(torch.full_like(whole.rewards[0], torch.nan), gaps, torch.zeros_like(gaps))
    return StepResult(_nothing(last), result, whole, pairs)


def _two_pass_step(
    score: Score, objective: Objective, micro_batches: Sequence[Batch], backward: Backward
) -> StepResult:
    device = micro_batches[0].input_ids.device
    states: list[_RandomState] = []
    parts: list[Scores] = []
    with torch.no_grad():
        for batch in micro_batches:
            states.append(_RandomState(device))
            parts.append(score(batch).detach())
    # autocast keeps the weights that it cast in the pass without gradients: they would cut the graph of the next pass
    torch.clear_autocast_cache()
    rows = [len(part) for part in parts]
    pairs = Pairs.concatenate([batch.pairs for batch in micro_batches], rows)
    step, cotangents = _solve(objective, Scores.concatenate(parts), pairs)
    split = {name: cotangent.split(rows) for name, cotangent in cotangents.items()}
    for place, batch in enumerate(micro_batches):
        states[place].restore()
        share = {name: cotangent[place] for name, cotangent in split.items()}
        last = place == len(micro_batches) - 1
        carrier = _carrier(score(batch), share, step.result.loss if last else None)
        if last:
            step.loss = carrier
        else:
            _backward(carrier, backward)
    return step


def _separable_step(
    score: Score, objective: Objective, micro_batches: Sequence[Batch], backward: Backward
) -> StepResult:
    """One pass: the whole batch's loss is the weighted mean of its micro-batches' losses."""
    device = micro_batches[0].input_ids.device
    weights = [_weight(batch.pairs) for batch in micro_batches]
    total = _sum_over_ranks(torch.stack(weights).sum())
    parts: list[Scores] = []
    for place, batch in enumerate(micro_batches):
        scores = score(batch)
        parts.append(scores.detach())
        with torch.autocast(device.type, enabled=False):
            loss = objective(scores, batch.pairs).loss * (weights[place] / total * _world_size()) + _nothing(scores)
        if place < len(micro_batches) - 1:
            _backward(loss, backward)
    pairs = Pairs.concatenate([batch.pairs for batch in micro_batches], [len(part) for part in parts])
    whole = Scores.concatenate(parts)
    if _world_size() > 1:
        whole, pairs, _ = _gather(whole, pairs)
    with torch.no_grad():
        result = objective(whole, pairs)
    return StepResult(loss - loss.detach() + result.loss, result, whole, pairs)


def _solve(objective: Objective, scores: Scores, pairs: Pairs) -> tuple[StepResult, dict[str, Tensor]]:
    """The objective over all ranks' scores, and its derivatives with respect to this rank's.

    Derivatives are multiplied by the number of ranks, because data-parallel strategies average gradients over them.
    """
    own = slice(0, len(scores))
    if _world_size() > 1:
        scores, pairs, own = _gather(scores, pairs)
    pairs = pairs.select(torch.argsort(pairs.columns["index"], stable=True))  # the same order for every split
    leaves = scores.map(lambda tensor: tensor.detach().requires_grad_())
    with torch.enable_grad(), torch.autocast(scores.rewards.device.type, enabled=False):
        result = objective(leaves, pairs)
    derivatives = torch.autograd.grad(result.loss, list(leaves.tensors.values()), allow_unused=True)
    cotangents = {
        name: derivative[own] * _world_size()
        for name, derivative in zip(leaves.tensors, derivatives, strict=True)
        if derivative is not None
    }
    detached = ObjectiveResult(result.loss.detach(), result.gaps.detach(), result.margins.detach())
    return StepResult(detached.loss, detached, scores, pairs), cotangents


def _carrier(scores: Scores, cotangents: dict[str, Tensor], value: Tensor | None) -> Tensor:
    """A scalar whose gradient is the inner product of scores and cotangents, and whose value is `value` if given."""
    with torch.autocast(scores.rewards.device.type, enabled=False):
        carrier = sum(
            ((scores.tensors[name] * cotangent).sum() for name, cotangent in cotangents.items()),
            start=_nothing(scores),
        )
        return carrier if value is None else carrier - carrier.detach() + value


def _nothing(scores: Scores) -> Tensor:
    """Zero, hanging on every tensor: data-parallel strategies wait for a gradient of each parameter, used or not."""
    return sum((tensor.sum() * 0 for tensor in scores.tensors.values()), start=torch.zeros_like(scores.rewards[0]))


def _backward(loss: Tensor, backward: Backward) -> None:
    with torch.autocast(loss.device.type, enabled=False):  # inside autocast the gradients would differ by 5e-3
        backward(loss)


class _RandomState:
    """The random state before a forward, so that dropout repeats itself in the second one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def _weight(pairs: Pairs) -> Tensor:
    weight = pairs.columns.get("weight")
    return torch.ones_like(pairs.chosen, dtype=torch.float32).sum() if weight is None else weight.sum()


def _world_size() -> int:
    return torch.distributed.get_world_size() if _distributed() else 1


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum_over_ranks(value: Tensor) -> Tensor:
    if _world_size() > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def _gather(scores: Scores, pairs: Pairs) -> tuple[Scores, Pairs, slice]:
    """All ranks' scores and pairs, and where this rank's rows are among them."""
    sizes = torch.tensor([len(scores), len(pairs)], device=scores.rewards.device)
    counts = torch.stack(_all_gather(sizes)).tolist()
    rows, pair_counts = [count[0] for count in counts], [count[1] for count in counts]
    whole = Scores({name: _gather_rows(scores.tensors[name], rows) for name in sorted(scores.tensors)})
    starts = [sum(rows[:rank]) for rank in range(len(rows))]
    rank = torch.distributed.get_rank()
    shifted = Pairs(pairs.chosen + starts[rank], pairs.rejected + starts[rank], dict(sorted(pairs.columns.items())))
    return whole, shifted.map(lambda t: _gather_rows(t, pair_counts)), slice(starts[rank], starts[rank] + rows[rank])


def _gather_rows(tensor: Tensor, counts: Sequence[int]) -> Tensor:
    """The ranks' rows behind each other; ranks may hold different numbers of them."""
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    return torch.cat([part[:count] for part, count in zip(_all_gather(padded), counts, strict=True)])


def _all_gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(_world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return parts
