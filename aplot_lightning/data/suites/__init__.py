"""Public benchmarks' own files, read as rows of ours: to evaluate on, or as a held-out set of a run.

Each file holds what one benchmark's rows look like (`Layout`); `Suite` is the source that reads them. How a benchmark
scores is in `evaluation/suites/`.
"""

from __future__ import annotations

from aplot_lightning.data.suites.source import LAYOUTS, SUITES, Suite

__all__ = ["LAYOUTS", "SUITES", "Suite"]
