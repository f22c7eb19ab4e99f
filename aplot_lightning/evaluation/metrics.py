"""Metrics of a reward model on a set of pairs (docs/method.md, section 5), by torchmetrics where it has them.

`PairPredictions` collects rewards over batches and ranks, `set_metrics` turns them into numbers, and `summarise_set`
adds intervals and subsets: the entry of one set in metrics.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from aplot_lightning.evaluation.statistics import bootstrap_interval, counted, right

Number = float | None

CALIBRATION_BINS = 15

# what is kept of each pair; rewards stay float32, so that the table also lives on devices without float64
COLUMNS: dict[str, torch.dtype] = {
    "index": torch.int64,
    "pair": torch.int64,
    "prompt": torch.int64,
    "chosen_reward": torch.float32,
    "rejected_reward": torch.float32,
    "target": torch.float32,
    "chosen_characters": torch.int64,
    "rejected_characters": torch.int64,
    "similarity": torch.float32,
}


def set_metrics(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    targets: Tensor,
    chosen_characters: Tensor,
    rejected_characters: Tensor,
    similarity: Tensor,
) -> dict[str, Number]:
    """The metrics of one set of n pairs, computed in float64 on the CPU.

    The preferred side is the chosen one where the target is above 1/2 and the rejected one where it is below; pairs
    with a target of exactly 1/2 count only in `pairs`, `log_loss`, `mean_gap` and `length_correlation`. With
    Δ = chosen - rejected reward and p = σ(Δ):

    - ``accuracy``: share of pairs whose preferred side has the higher reward; a tie is wrong
    - ``pairs``: n
    - ``log_loss``: mean of -t log σ(Δ) - (1 - t) log σ(-Δ), without any margin
    - ``ece``: expected calibration error over 15 equal-width bins of [0, 1]: confidence max(p, 1 - p) against being
      right (chosen first, every label would be 1, so the predicted side is what can be calibrated)
    - ``auroc``: of |Δ| for being right; None when all are right or all are wrong
    - ``length_correlation``: Pearson, reward with characters, over all 2n responses
    - ``longer_chosen_accuracy``, ``shorter_chosen_accuracy``: accuracy where the preferred response is the longer, the
      shorter one (equal lengths are in neither)
    - ``hard_accuracy``: accuracy on the third of the pairs (rounded up) with the highest similarity, earlier pairs
      first among equals
    - ``mean_gap``: mean of Δ

    Args:
        chosen_rewards: (n,) float.
        rejected_rewards: (n,) float.
        targets: (n,) float in [0, 1], 1 for a plain pair.
        chosen_characters: (n,) length of the chosen response.
        rejected_characters: (n,) length of the rejected response.
        similarity: (n,) float, token F1 of the two responses' texts.

    Returns:
        One float per name; None where a metric has no pairs or is not finite, never NaN.
    """
    chosen, rejected, target, likeness = (
        column.detach().cpu().double() for column in (chosen_rewards, rejected_rewards, targets, similarity)
    )
    longer = (chosen_characters - rejected_characters).cpu()
    gap = chosen - rejected
    decided = counted(target)
    correct = right(gap, target)[decided]
    longer = torch.where(target > 0.5, longer, -longer)[decided]
    hardest = torch.sort(likeness[decided], descending=True, stable=True).indices[: math.ceil(len(correct) / 3)]
    characters = torch.cat([chosen_characters, rejected_characters]).cpu().double()
    return {
        "accuracy": _mean(correct),
        "pairs": len(gap),
        "log_loss": _mean(target * _softplus(-gap) + (1 - target) * _softplus(gap)),
        "ece": _calibration_error(gap[decided], correct),
        "hard_accuracy": _mean(correct[hardest]),
        "longer_chosen_accuracy": _mean(correct[longer > 0]),
        "shorter_chosen_accuracy": _mean(correct[longer < 0]),
        "length_correlation": _correlation(torch.cat([chosen, rejected]), characters),
        "mean_gap": _mean(gap),
        "auroc": _auroc(gap[decided].abs(), correct),
    }


def _softplus(x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(x, threshold=1e9)  # the default is linear above 20: 2e-9 off in float64


def _mean(values: Tensor) -> Number:
    return _finite(values.double().mean()) if values.numel() else None


def _finite(value: Tensor) -> Number:
    number = float(value)
    return number if math.isfinite(number) else None


def _calibration_error(gap: Tensor, correct: Tensor) -> Number:
    if not correct.numel() or not gap.isfinite().all():
        return None
    return _finite(binary_calibration_error(torch.sigmoid(gap.abs()), correct.long(), n_bins=CALIBRATION_BINS))


def _auroc(confidence: Tensor, correct: Tensor) -> Number:
    if correct.all() or not correct.any() or not confidence.isfinite().all():
        return None
    # torchmetrics takes scores above 1 for logits, and their sigmoid would merge the large ones
    return _finite(binary_auroc(confidence / confidence.max(), correct.long()))


def _correlation(rewards: Tensor, characters: Tensor) -> Number:
    varies = rewards.numel() > 1 and rewards.min() < rewards.max() and characters.min() < characters.max()
    if not varies or not rewards.isfinite().all():
        return None
    return _finite(pearson_corrcoef(rewards, characters))


class PairPredictions(Metric):
    """Collects what is needed of each pair of one evaluation set, over batches and ranks.

    Ranks may hold different numbers of pairs, none, or the same pairs twice (padding samplers): a pair counts once. It
    is known by its comparison's `index` and its place among the comparison's pairs in the batch, so all pairs of a
    comparison must come in one update, in the same order wherever they come.
    """

    full_state_update = False

    def __init__(self, **options: Any) -> None:
        # table() gathers, and compute() goes through table(): the wrapper of compute must not gather a second time
        super().__init__(sync_on_compute=False, **options)
        for name in COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        *,
        index: Tensor,
        prompt: Tensor,
        chosen_reward: Tensor,
        rejected_reward: Tensor,
        chosen_characters: Tensor,
        rejected_characters: Tensor,
        similarity: Tensor,
        target: Tensor | None = None,
        **others: Any,
    ) -> None:
        """Adds the n pairs of a batch; n may be 0.

        Args:
            index: (n,) int64, the comparison's place in its set.
            prompt: (n,) int64, a hash of the prompt: the cluster of the bootstrap.
            chosen_reward: (n,) float.
            rejected_reward: (n,) float.
            chosen_characters: (n,) int64.
            rejected_characters: (n,) int64.
            similarity: (n,) float, token F1 of the two responses.
            target: (n,) float; without it every pair is a plain one (1.0).
            others: further columns of the batch, which are not kept.

        Raises:
            ValueError: a column is not (n,).
        """
        values = {
            "index": index,
            "pair": _occurrence(index),
            "prompt": prompt,
            "chosen_reward": chosen_reward,
            "rejected_reward": rejected_reward,
            "target": torch.ones_like(chosen_reward) if target is None else target,
            "chosen_characters": chosen_characters,
            "rejected_characters": rejected_characters,
            "similarity": similarity,
        }
        for name, value in values.items():
            if value.shape != (len(index),):
                raise ValueError(f"{name} must have shape ({len(index)},) like index, not {tuple(value.shape)}")
        for name, value in values.items():
            getattr(self, name).append(value.detach().to(self.device, COLUMNS[name]))

    def sync(self, *arguments: Any, **options: Any) -> None:
        # a rank without pairs would otherwise send float32 where the others send int64
        for name in COLUMNS:
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [torch.empty(0, dtype=COLUMNS[name], device=self.device)])
        super().sync(*arguments, **options)

    def table(self) -> dict[str, Tensor]:
        """All pairs of all ranks, each once, sorted by (index, pair): the columns of `COLUMNS` on the CPU, (n,) each.

        A collective call where there are several ranks: every rank calls it and gets the same table.
        """
        with self.sync_context():
            columns = {name: _joined(getattr(self, name), dtype) for name, dtype in COLUMNS.items()}
        keys = torch.stack([columns["index"], columns["pair"]], dim=1)
        unique, member = torch.unique(keys, dim=0, return_inverse=True)  # sorted
        first = torch.full((len(unique),), len(keys)).scatter_reduce(0, member, torch.arange(len(keys)), "amin")
        return {name: column[first] for name, column in columns.items()}

    def compute(self) -> dict[str, Number]:
        """`set_metrics` of the pairs of all ranks."""
        return table_metrics(self.table())


def _occurrence(index: Tensor) -> Tensor:
    """For each entry, how many equal ones stand before it: [7, 3, 7, 7] -> [0, 0, 1, 2]. (n,) int64 -> (n,) int64."""
    order = torch.argsort(index, stable=True)
    sorted_index = index[order]
    start = torch.searchsorted(sorted_index, sorted_index)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(index), device=index.device) - start)


def _joined(state: Tensor | list[Tensor], dtype: torch.dtype) -> Tensor:
    if isinstance(state, Tensor):  # what a gathered list becomes
        return state.cpu()
    return torch.cat(state).cpu() if state else torch.empty(0, dtype=dtype)


def table_metrics(table: Mapping[str, Tensor]) -> dict[str, Number]:
    """`set_metrics` of a table of `PairPredictions`."""
    return set_metrics(
        table["chosen_reward"],
        table["rejected_reward"],
        targets=table["target"],
        chosen_characters=table["chosen_characters"],
        rejected_characters=table["rejected_characters"],
        similarity=table["similarity"],
    )


def summarise_set(table: Mapping[str, Tensor] | None, subsets: Sequence[str] | None = None) -> dict[str, Any]:
    """One set's entry in metrics.json: `set_metrics` with the accuracy's 95 % interval over prompts (`ci95`).

    Args:
        table: what `PairPredictions.table` returns, n pairs; None for a set that was not evaluated, whose figures are
            None and whose `pairs` are 0.
        subsets: the name of each pair's subset, n of them in the table's order. With it the entry gets ``subsets``:
            {name: {"accuracy", "ci95", "pairs"}}, in the order of first appearance; pairs without a name ("") are in
            none.

    Returns:
        {"accuracy", "ci95": [low, high] or None, "pairs", ...}: plain Python values that JSON can hold.

    Raises:
        ValueError: there are not as many subset names as pairs.
    """
    if table is None:
        table = {name: torch.empty(0, dtype=dtype) for name, dtype in COLUMNS.items()}
    everything = torch.ones_like(table["index"], dtype=torch.bool)
    entry = {**_accuracy(table, everything), **table_metrics(table)}
    if subsets is not None:
        if len(subsets) != len(everything):
            raise ValueError(f"{len(subsets)} subset names for {len(everything)} pairs")
        entry["subsets"] = {
            name: _accuracy(table, torch.tensor([subset == name for subset in subsets]))
            for name in dict.fromkeys(subsets)
            if name
        }
    return entry


def _accuracy(table: Mapping[str, Tensor], members: Tensor) -> dict[str, Any]:
    """Accuracy, interval and number of the pairs where `members` (n,) is True."""
    decided = members & counted(table["target"])
    correct = right(table["chosen_reward"] - table["rejected_reward"], table["target"])[decided]
    interval = bootstrap_interval(correct.numpy(), table["prompt"][decided].numpy())
    return {
        "accuracy": _mean(correct),
        "ci95": list(interval) if interval else None,
        "pairs": int(members.sum()),
    }


def ood_mean(sets: Mapping[str, Mapping[str, Any]], metric: str = "accuracy") -> Number:
    """Unweighted mean of a metric over the OOD sets: {name: its set_metrics or summarise_set}.

    None without sets, and where one of them does not have the metric: a mean over fewer sets could not be compared with
    another run's.
    """
    known = [metrics[metric] for metrics in sets.values() if metrics.get(metric) is not None]
    return sum(known) / len(known) if known and len(known) == len(sets) else None
