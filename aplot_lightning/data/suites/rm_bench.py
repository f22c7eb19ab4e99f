"""RM-Bench (THU-KEG/RM-Bench: total_dataset.json, or the file of one domain)."""

from __future__ import annotations

from collections.abc import Sequence

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.suites.layout import Layout, Ours, Raw, best_first, is_texts, text, texts

STYLES = 3  # concise, detailed and plain, detailed with Markdown
DOMAINS = ("chat", "math", "code", "safety", "safety-refuse", "safety-response")


def _fits(row: Raw) -> bool:
    return all(is_texts(row.get(name)) for name in ("chosen", "rejected")) and isinstance(row.get("domain"), str)


def _read(row: Raw, places: Sequence[str]) -> Ours:
    domain = text(row, "domain")
    if not domain.startswith(DOMAINS):
        raise RowError("missing_field", f"the domain {domain[:50]!r} is no part of RM-Bench")
    sides = {name: texts(row, name) for name in ("chosen", "rejected")}
    for name, side in sides.items():
        if len(side) != STYLES:
            raise RowError("missing_field", f'"{name}" has {len(side)} responses, {STYLES} are meant, one a style')
    return best_first(row, text(row, "prompt"), sides["chosen"], sides["rejected"], domain)


RM_BENCH = Layout(
    name="rm_bench",
    title="RM-Bench",
    fields=("prompt", "chosen [3 texts]", "rejected [3 texts]", "domain"),
    fits=_fits,
    read=_read,
    pairs=False,
    subsets=DOMAINS,
    files=r"total_dataset\.json",
)
