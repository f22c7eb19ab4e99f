"""Public benchmarks' own scoring rules: from a table of rewards to the figures that each one's leaderboard has.

A rule is one function a file, and says in its docstring what it does and where that is written. The files that the rows
come from are read in `data/suites/`.
"""

from __future__ import annotations

from collections.abc import Callable

from aplot_lightning.evaluation.suites.hhh import hhh
from aplot_lightning.evaluation.suites.judgebench import judgebench
from aplot_lightning.evaluation.suites.llmbar import llmbar
from aplot_lightning.evaluation.suites.mt_bench import mt_bench
from aplot_lightning.evaluation.suites.pairs import pairs
from aplot_lightning.evaluation.suites.rewardbench import rewardbench
from aplot_lightning.evaluation.suites.rewardbench2 import rewardbench2
from aplot_lightning.evaluation.suites.rm_bench import rm_bench
from aplot_lightning.evaluation.suites.scores import Columns, Figures

__all__ = ["BY_PROMPT", "RULES", "Columns", "Figures"]

RULES: dict[str, Callable[[Columns], Figures]] = {
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "rm_bench": rm_bench,
    "judgebench": judgebench,
    "hhh": hhh,
    "mt_bench": mt_bench,
    "llmbar": llmbar,
    "pairs": pairs,
}
BY_PROMPT = frozenset({"rewardbench2", "rm_bench"})  # their tables have a row a prompt, the others' a row a pair
