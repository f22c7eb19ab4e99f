"""RewardBench and RewardBench 2 (allenai/reward-bench, its hub data sets of the same names)."""

from __future__ import annotations

from collections.abc import Sequence

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.suites.layout import Layout, Ours, Raw, best_first, is_texts, labels, text, texts, user

CORE = (
    *("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med", "mt-bench-hard"),
    *("llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual"),
    *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    *("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
)
PRIOR = (
    "anthropic_harmless",
    "anthropic_helpful",
    "anthropic_hhh",
    "mtbench_gpt4",
    "mtbench_human",
    "shp",
    "summarize",
)
SUBSETS_2 = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")


def _fits(row: Raw) -> bool:
    return all(isinstance(row.get(name), str) for name in ("chosen", "rejected"))


def _read(row: Raw, places: Sequence[str]) -> Ours:
    """A row of the filtered set, or of a prior set (allenai/preference-test-sets), whose name is its file's."""
    prior = next((name for name in PRIOR for place in reversed(places) if place.split("-")[0] == name), None)
    subset = prior or text(row, "subset")
    if subset not in REWARDBENCH.subsets:
        raise RowError("missing_field", f"the subset {subset[:50]!r} is no part of RewardBench")
    prompt = row["prompt"] if isinstance(row.get("prompt"), list) else user(text(row, "prompt"))
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"], **labels(row, subset)}


def _fits_2(row: Raw) -> bool:
    return all(is_texts(row.get(name)) for name in ("chosen", "rejected")) and isinstance(row.get("subset"), str)


def _read_2(row: Raw, places: Sequence[str]) -> Ours:
    """A row of the test set: one right answer of four, or several right ones in Ties, whose ids pair the prompts."""
    chosen, rejected, subset = texts(row, "chosen"), texts(row, "rejected"), text(row, "subset")
    known = next((name for name in SUBSETS_2 if name.lower() == subset.lower()), None)
    if known is None:
        raise RowError("missing_field", f"the subset {subset[:50]!r} is no part of RewardBench 2")
    if known == "Ties":
        kind, _, number = str(row.get("id")).partition(":")
        if kind not in ("ref", "tied") or not number.isdigit():
            raise RowError("missing_field", f'"id" of a Ties row is {row.get("id")!r}, not ref:NUMBER or tied:NUMBER')
    elif len(chosen) != 1:
        raise RowError("missing_field", f'"chosen" has {len(chosen)} responses, 1 is meant outside of Ties')
    return best_first(row, text(row, "prompt"), chosen, rejected, known)


REWARDBENCH = Layout(
    name="rewardbench",
    title="RewardBench",
    fields=("prompt", "chosen", "rejected", "subset"),
    fits=_fits,
    read=_read,
    subsets=(*CORE, *PRIOR),
    files=rf"({'|'.join(('filtered', *PRIOR))})[-.].*",
    hub=((None, "filtered", ""),),
)
REWARDBENCH_2 = Layout(
    name="rewardbench2",
    title="RewardBench 2",
    fields=("prompt", "chosen [texts]", "rejected [texts]", "subset"),
    fits=_fits_2,
    read=_read_2,
    pairs=False,
    subsets=SUBSETS_2,
    hub=((None, "test", ""),),
)
