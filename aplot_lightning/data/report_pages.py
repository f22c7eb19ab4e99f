"""The data report for readers: a table on the terminal, a page of Markdown, and one line a set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from aplot_lightning.data.comparisons import KINDS
from aplot_lightning.data.ledger import SourceLedger
from aplot_lightning.data.preview import Preview, harmless

COLUMNS = ("set", "source", "read", "used", "pairs", "longer wins", "tokens p50", "p95", "max")
HOW_TO_READ = (
    "Every row that was read is used or refused under one reason. *longer wins* is the share of pairs whose preferred "
    "response has more characters; tokens are those of the longest conversation of a row. Rows held out of the "
    "training source count in `train` too."
)
Accounts = Sequence[tuple[str, SourceLedger]]  # the set's name in the table, and an account of it


def terminal_table(accounts: Accounts, previews: Sequence[Preview], done: Sequence[str] = ()) -> str:
    """A line for each account, under it what was refused and where first, and at the end what the model reads.

    `done` are sentences on what was done to the training pairs on purpose.
    """
    rows = [COLUMNS, *(_cells(place, ledger) for place, ledger in accounts)]
    notes = [[], *([] if ledger.summed else _notes(ledger) for _, ledger in accounts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row, found in zip(rows, notes, strict=True):
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines += ["  ".join([*texts, *numbers]), *(f"  {note}" for note in found)]
    lines += done
    for number, preview in enumerate(previews, start=1):
        lines += ["", f"{_heading(number, preview)}:", *_preview_lines(preview)]
    return harmless("\n".join(lines))


def markdown_page(accounts: Accounts, previews: Sequence[Preview], done: Sequence[str] = ()) -> str:
    """The whole report: the table, every refused kind with its first ten rows, cuts, near leaks, and the previews.

    What comes from the data stands in indented code blocks, so that no text in it is read as Markdown.
    """
    align = ["---", "---", *["---:"] * (len(COLUMNS) - 2)]
    table = [COLUMNS, align, *([_cell(text) for text in _cells(place, ledger)] for place, ledger in accounts)]
    parts = ["# Data report", "\n".join(f"| {' | '.join(row)} |" for row in table), HOW_TO_READ, *done]
    single = [(place, ledger) for place, ledger in accounts if not ledger.summed]
    refusing = [(place, ledger) for place, ledger in single if any(ledger.refused.values())]
    parts.append("## Refused rows" if refusing else "No row was refused.")
    for place, ledger in refusing:
        parts += _refused_sections(place, ledger)
    kept = [(place, note) for place, ledger in single for note in (*_cuts(ledger), *_near(ledger))]
    if kept:
        parts += ["## Used, but worth a look", "\n".join(f"- `{place}`: {note}" for place, note in kept)]
    if previews:
        parts += ["## What the model reads", "Three pairs, from the shortest to the longest; ⟦⟧ is the scored token."]
    for number, preview in enumerate(previews, start=1):
        parts += [f"### {_heading(number, preview)}", _block(_preview_lines(preview))]
    return harmless("\n\n".join(parts) + "\n")


def summary_lines(accounts: Accounts) -> list[str]:
    """One line an account, for the log of a run: ``data train: 5,000 rows of x.jsonl, 4,988 used; refused 12 tie``."""
    lines = []
    for place, ledger in accounts:
        if ledger.summed:
            continue
        refused = ", ".join(f"{count:,} {kind}" for kind, count in ledger.refused.items() if count)
        notes = [f"refused {refused}"] if refused else []
        notes += [note.split(" (")[0] for note in (*_cuts(ledger), *_near(ledger))]
        used = f"{ledger.read:,} rows of {ledger.name}, {ledger.used:,} used"
        lines.append(harmless("; ".join([f"data {place}: {used}", *notes])))
    return lines


def _cells(place: str, ledger: SourceLedger) -> tuple[str, ...]:
    account = ledger.as_dict()
    share = account["longer_wins"]
    tokens = ["-" if value is None else f"{value:,}" for value in account["tokens"].values()]
    counts = [f"{account[name]:,}" for name in ("read", "used", "pairs")]
    return place, ledger.name, *counts, "-" if share is None else f"{share:.2f}", *tokens


def _notes(ledger: SourceLedger) -> list[str]:
    lines = []
    for kind, found in _refused(ledger):
        (where, message), *others = found
        also = f"; also {', '.join(other for other, _ in others)}" if others else ""
        more = " ..." if ledger.refused[kind] > len(found) else ""
        lines.append(f"refused {ledger.refused[kind]:,} {kind}: {where}: {message}{also}{more}")
    return [*lines, *_cuts(ledger), *_near(ledger)]


def _refused(ledger: SourceLedger) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    return ((kind, ledger.locations[kind]) for kind in KINDS if ledger.refused[kind])


def _cuts(ledger: SourceLedger) -> list[str]:
    counts: Mapping[str, int] = {
        "prompts": ledger.cut_prompts,
        "chosen responses": ledger.cut_chosen,
        "rejected responses": ledger.cut_rejected,
    }
    cut = ", ".join(f"{count:,} {name[:-1] if count == 1 else name}" for name, count in counts.items() if count)
    return [f"cut to max_length: {cut}"] if cut else []


def _near(ledger: SourceLedger) -> list[str]:
    if not ledger.near_leak:
        return []
    return [f"near leak: {ledger.near_leak:,} used rows (their prompts are nearly those of an evaluation set)"]


def _refused_sections(place: str, ledger: SourceLedger) -> list[str]:
    parts = []
    for kind, found in _refused(ledger):
        count = ledger.refused[kind]
        first = f", the first {len(found)}" if count > len(found) else ""
        parts.append(f"### `{place}`: {count:,} {kind}{first}")
        parts.append(_block([ledger.name, *(f"  {where}: {message}" for where, message in found)]))
    return parts


def _heading(number: int, preview: Preview) -> str:
    return f"pair {number}, {preview.chosen.tokens:,} and {preview.rejected.tokens:,} tokens"


def _preview_lines(preview: Preview) -> list[str]:
    chosen, rejected = preview.chosen, preview.rejected
    if preview.one_prompt:
        texts = {"prompt": chosen.prompt, "chosen": chosen.response, "rejected": rejected.response}
    else:
        texts = {
            "prompt of the chosen": chosen.prompt,
            "chosen": chosen.response,
            "prompt of the rejected": rejected.prompt,
            "rejected": rejected.response,
        }
    return [line for name, text in texts.items() for line in (f"  {name}:", *_indented(text))]


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.replace("\r\n", "\n").split("\n")]


def _block(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
