"""The study's report: a table with intervals over prompts and seeds, and a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aplot_lightning.inference.best_of_n import best_of_n_kl

RESAMPLES = 2000
SHARES = {"answers": "answers", "facts": "right facts", "arithmetic": "right number", "cue": "cue"}  # of the chosen


@dataclass
class Curves:
    """Best-of-n of one set of prompts.

    Attributes:
        sizes: the n.
        columns: names of the measurements: the standardized proxy, gold (the true reward), and its components.
        seeds: objective -> the seeds of its runs.
        values: objective -> (seeds, prompts, sizes, columns).
        correlations: objective -> (seeds, prompts), between proxy and gold over the responses of one prompt.
        oracle: (prompts, sizes), gold if gold itself is maximized.
    """

    sizes: list[int]
    columns: tuple[str, ...]
    seeds: dict[str, list[int]]
    values: dict[str, np.ndarray]
    correlations: dict[str, np.ndarray]
    oracle: np.ndarray

    def of(self, objective: str, column: str) -> np.ndarray:
        """(seeds, prompts, sizes)."""
        return self.values[objective][..., self.columns.index(column)]


def resampled(values: np.ndarray) -> np.ndarray:
    """(RESAMPLES, ...) means over the first two axes, seeds and prompts, each resampled with replacement.

    Both vary: another seed gives another model, other prompts other pools. With a single seed only prompts are
    resampled.
    """
    random = np.random.default_rng(0)
    seeds, prompts = values.shape[:2]
    weight_of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    weight_of_prompts = random.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES) / prompts
    return np.einsum("bs,bp,sp...->b...", weight_of_seeds, weight_of_prompts, values, optimize=True)


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: np.ndarray) -> Estimate:
        """Of (seeds, prompts) values."""
        low, high = interval(resampled(values))
        return Estimate(float(values.mean()), float(low), float(high))

    def text(self, signed: bool = False) -> str:
        style = "+.2f" if signed else ".2f"
        return f"{self.mean:{style}} [{self.low:{style}}, {self.high:{style}}]"


def lost_from_peak(curves: Curves, objective: str) -> tuple[int, Estimate | None]:
    """The index of the n with the most gold, and the change from there to the largest n; None if they are the same.

    The interval treats the peak's index as fixed, although it was selected.
    """
    gold = curves.of(objective, "gold")
    peak = int(gold.mean((0, 1)).argmax())
    last = gold.shape[-1] - 1
    return peak, None if peak == last else Estimate.of(gold[..., last] - gold[..., peak])


def less_baseline(curves: Curves, objective: str, baseline: str) -> Estimate | None:
    """Gold at the largest n less the baseline's, on the same prompts and common seeds."""
    common = [seed for seed in curves.seeds[objective] if seed in curves.seeds[baseline]]
    if objective == baseline or not common:
        return None
    own, other = (
        curves.of(name, "gold")[[curves.seeds[name].index(seed) for seed in common]] for name in (objective, baseline)
    )
    return Estimate.of((own - other)[..., -1])


def table(curves: Curves) -> str:
    """One row per objective, and a summary of the intervals."""
    sizes, last = curves.sizes, len(curves.sizes) - 1
    shown = [index for index, n in enumerate(sizes) if n in (16, 256)] + [last]
    baseline = next(iter(curves.values))
    heads = ["objective", "seeds", *(f"gold, n = {sizes[index]:,}" for index in shown), f"less {baseline}"]
    heads += ["peak at n", "gold there", "lost from there", "correlation", *SHARES.values()]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    losing, apart = [], []
    for objective in curves.values:
        gold = curves.of(objective, "gold")
        peak, lost = lost_from_peak(curves, objective)
        less = less_baseline(curves, objective, baseline)
        losing += [objective] if lost and lost.high < 0 else []
        apart += [f"{objective} ({less.mean:+.2f})"] if less and less.low * less.high > 0 else []
        cells = [objective, str(len(gold)), *(Estimate.of(gold[..., index]).text() for index in shown)]
        cells.append(less.text(signed=True) if less else "")
        cells += [f"{sizes[peak]:,}", f"{gold[..., peak].mean():.2f}", lost.text(signed=True) if lost else "0"]
        cells.append(f"{curves.correlations[objective].mean():.2f}")
        cells += [f"{curves.of(objective, name)[..., last].mean():.2f}" for name in SHARES]
        lines.append(f"| {' | '.join(cells)} |")
    best = curves.oracle.mean(0)
    cells = ["*true reward*", "", *(f"{best[index]:.2f}" for index in shown), "", f"{sizes[-1]:,}", f"{best[-1]:.2f}"]
    lines.append(f"| {' | '.join([*cells, '', '1.00', *[''] * len(SHARES)])} |")
    start = curves.of(baseline, "gold")[..., 0].mean()
    summary = (
        f"A single response (n = 1) has {start:.2f}. Gold falls from its peak, beyond the interval, under "
        f"{', '.join(losing) or 'none'} of {len(curves.values)}; at n = {sizes[-1]:,} the interval of the difference "
        f"to {baseline} leaves out 0 for {', '.join(apart) or 'none'}."
    )
    return "\n".join([*lines, "", summary])


def plot(found: dict[str, Curves], path: Path) -> None:
    """A row of two panels for each set: gold, and the standardized proxy, over KL."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {world: curves for world, curves in found.items() if curves.values}
    figure, axes = plt.subplots(len(found), 2, figsize=(11, 4.2 * len(found)), squeeze=False, layout="constrained")
    for row, (world, curves) in zip(axes, found.items(), strict=True):
        kl = [best_of_n_kl(n) for n in curves.sizes]
        for index, objective in enumerate(curves.values):
            color = plt.get_cmap("tab10" if len(curves.values) <= 10 else "tab20")(index)
            for axis, column in zip(row, ("gold", "proxy"), strict=True):
                values = curves.of(objective, column)
                low, high = interval(resampled(values))
                axis.plot(kl, values.mean((0, 1)), color=color, label=objective, lw=1.6)
                axis.fill_between(kl, low, high, color=color, alpha=0.08, lw=0)
        row[0].plot(kl, curves.oracle.mean(0), color="black", ls=":", label="true reward")
        name = {"none": "training world", "new_topics": "new topics"}[world]
        row[0].set(title=f"{name}: true reward of best-of-n", ylabel="true reward")
        row[1].set(title=f"{name}: proxy reward of best-of-n", ylabel="proxy, in its own standard deviations")
        for axis in row:
            axis.set_xlabel("KL = log n − (n − 1)/n")
            axis.grid(alpha=0.3)
            above = axis.secondary_xaxis("top")
            marks = [n for n in curves.sizes if n in (1, 4, 16, 64, 256, 1024, curves.sizes[-1])]
            above.set_xticks([best_of_n_kl(n) for n in marks], [f"{n:,}" for n in marks], fontsize=7)
    axes[0][0].legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
