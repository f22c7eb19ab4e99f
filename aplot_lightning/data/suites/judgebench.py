"""JudgeBench (ScalerLab/JudgeBench: a file of pairs for each model that wrote them)."""

from __future__ import annotations

from collections.abc import Sequence

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.suites.layout import Layout, Ours, Raw, text, user

SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")


def _fits(row: Raw) -> bool:
    return {"question", "response_A", "response_B", "label"} <= row.keys()


def _read(row: Raw, places: Sequence[str]) -> Ours:
    source = text(row, "source")
    subset = next((name for name in SOURCES if source.startswith(name)), None)  # "mmlu-pro-law"
    if subset is None:
        raise RowError("missing_field", f"the source {source[:50]!r} is no part of JudgeBench")
    sides = [text(row, "response_A"), text(row, "response_B")]
    label = text(row, "label")
    if label not in ("A>B", "B>A"):
        raise RowError("missing_field", f'"label" is {label[:20]!r}, A>B or B>A is meant')
    chosen, rejected = sides if label == "A>B" else sides[::-1]
    ours: Ours = {"prompt": user(text(row, "question")), "chosen": chosen, "rejected": rejected, "subset": subset}
    return ours | ({"id": str(row["pair_id"])} if row.get("pair_id") is not None else {})


JUDGEBENCH = Layout(
    name="judgebench",
    title="JudgeBench",
    fields=("question", "response_A", "response_B", "label", "source"),
    fits=_fits,
    read=_read,
    subsets=SOURCES,
    files=r"dataset=judgebench,response_model=[^,]*\.jsonl",
    hub=((None, "gpt", ""),),
)
