"""`select`: preference pairs for DPO out of scored candidates, one a prompt, in TRL's layout."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Literal

from aplot_lightning.data.comparisons import RowError
from aplot_lightning.data.sources import open_source
from aplot_lightning.errors import UserError
from aplot_lightning.inference.output import check_output, json_line, replacing

Rule = Literal["max_min", "plus", "times"]


def main(
    input: str,
    output: str,
    rule: Rule = "max_min",
    phi: float = 50.0,
    least_margin: float = 0.0,
    most_margin: float | None = None,
    overwrite: bool = False,
) -> None:
    """Makes a preference pair of each prompt's scored candidates.

    The output holds prompt, chosen, rejected, chosen_score and rejected_score (and id, source, subset where rows have
    them), as messages where the prompt or a response is messages: what TRL's DPOTrainer and fit read. Candidates that
    are empty or repeat one of their prompt exactly are left out, and so are pairs that came before; all is counted.

    Args:
        input: Rows of {"prompt", "responses", "rewards"} as score writes them; plus and times also need
            "log_probabilities", one for each response under the policy to be trained. JSONL, JSONL.gz or Parquet.
        output: Where to write, JSONL or JSONL.gz.
        rule: max_min takes the largest and the smallest reward; plus (CRPO) the largest phi * (reward difference) +
            (log-probability of rejected - of chosen); times (CRPO) the largest product of the two.
        phi: Weight of the rewards under plus.
        least_margin: Least difference of the two rewards.
        most_margin: Largest difference of the two rewards; no limit if not given.
        overwrite: Replace an output that exists.
    """
    _check_margins(phi, least_margin, most_margin)
    path = check_output(output, overwrite, {"--input": input})
    source = open_source(input, "--input")
    from aplot_lightning.inference.preference_pairs import choose_pair

    limits = {"phi": phi, "least_margin": least_margin, "most_margin": inf if most_margin is None else most_margin}
    choose = partial(choose_pair, rule, **limits)
    counts: Counter[str] = Counter()
    seen: set[bytes] = set()
    with replacing(path) as file:
        for where, content in source.rows():
            counts["rows"] += 1
            try:
                row = _pair_of(content, rule, choose, seen, counts)
            except RowError as error:
                counts["unusable"] += 1
                print(f"warning: {where}: {error}; no pair is made of it", file=sys.stderr)
                continue
            if row is not None:
                counts["pairs"] += 1
                file.write(json_line(row))
        if not counts["pairs"]:
            raise UserError(f"--input: {input}: {_left_out(counts) or 'it has no rows'}; nothing was written")
    if counts["unusable"]:
        print(f"warning: {counts['unusable']} of {counts['rows']} rows could not be used", file=sys.stderr)
    left_out = _left_out(counts)
    print(f"{counts['pairs']} pairs of {counts['rows']} rows ({rule}{'; ' if left_out else ''}{left_out}): {output}")


def _pair_of(
    content: Any, rule: Rule, choose: Callable[..., tuple[int, int] | None], seen: set[bytes], counts: Counter[str]
) -> dict[str, Any] | None:
    """The output row of an input row, None where there is none; why is counted. Raises RowError."""
    from aplot_lightning.inference.preference_pairs import Candidates, preference_row, text_of

    whole = Candidates.of(content, rule)
    candidates = whole.distinct()
    counts["repeated or empty responses"] += len(whole.responses) - len(candidates.responses)
    pair = choose(candidates.rewards, candidates.log_probabilities)
    if pair is None:
        counts["without a pair" if len(candidates.responses) > 1 else "with one response"] += 1
        return None
    row = preference_row(candidates, pair)
    texts = repr([text_of(row[name]) for name in ("prompt", "chosen", "rejected")])
    key = hashlib.sha256(texts.encode(errors="surrogatepass")).digest()
    if key in seen:
        counts["repeated pairs"] += 1
        return None
    seen.add(key)
    return row


def _left_out(counts: Counter[str]) -> str:
    """What became of the rows that gave no pair, and of the responses."""
    names = ("unusable", "with one response", "without a pair", "repeated pairs", "repeated or empty responses")
    return ", ".join(f"{counts[name]} {name}" for name in names if counts[name])


def _check_margins(phi: float, least: float, most: float | None) -> None:
    if not phi > 0:
        raise UserError(f"--phi is {phi}: it must be above 0")
    if not least >= 0:
        raise UserError(f"--least_margin is {least}: it must be at least 0")
    if most is not None and not most >= least:
        raise UserError(f"--most_margin is {most}: it must be at least --least_margin ({least})")
