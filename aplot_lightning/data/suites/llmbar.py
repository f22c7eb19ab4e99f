"""LLMBar (princeton-nlp/LLMBar: Dataset/LLMBar with a dataset.json for each part)."""

from __future__ import annotations

from collections.abc import Sequence

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.suites.layout import Layout, Ours, Raw, labels, text, user

ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SUBSETS = ("Natural", *(f"Adversarial/{name}" for name in ADVERSARIAL))


def _fits(row: Raw) -> bool:
    return {"input", "output_1", "output_2", "label"} <= row.keys()


def _read(row: Raw, places: Sequence[str]) -> Ours:
    sides = [text(row, "output_1"), text(row, "output_2")]
    if isinstance(row["label"], bool) or row["label"] not in (1, 2):
        raise RowError("missing_field", f'"label" is {row["label"]!r}, 1 or 2 is meant')
    chosen, rejected = sides if row["label"] == 1 else sides[::-1]
    subset = str(row.get("subset") or next((part for part in SUBSETS if part.split("/")[-1] in places), ""))
    return {"prompt": user(text(row, "input")), "chosen": chosen, "rejected": rejected, **labels(row, subset)}


LLMBAR = Layout(
    name="llmbar",
    title="LLMBar",
    fields=("input", "output_1", "output_2", "label"),
    fits=_fits,
    read=_read,
    subsets=SUBSETS,
    files=r"dataset\.json",
)
