"""Tables as text for a terminal and as Markdown, and how numbers and foreign text are written in them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from aplot_lightning.evaluation.report.outcomes import Estimate
from aplot_lightning.evaluation.statistics import Interval

# an underscore inside a word is no markup, and set names stay as they can be searched for
_MARKDOWN = re.compile(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns with a rule under the header: the first column to the left, the others to the right."""
    widths = [max(map(_width, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        _aligned(header, widths),
        "-" * (sum(widths) + 2 * (len(widths) - 1)),
        *(_aligned(r, widths) for r in rows),
    ]
    return "\n".join(lines)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padding = [" " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
    first, *others = zip(cells, padding, strict=True)
    return "  ".join(["".join(first), *(space + cell for cell, space in others)]).rstrip()


def _width(text: str) -> int:
    """Columns of a terminal that the text takes: East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table; the first `left` columns are aligned to the left, the others to the right.

    Cells are Markdown already: foreign text goes through `escape` first.
    """
    rule = [":--" if place < left else "--:" for place in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def escape(text: str) -> str:
    """Text as it is in Markdown, on one line: nothing in it is markup, HTML, a table's end or a control character."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", line)


def shorten(text: str, length: int = 200) -> str:
    """The text on one line, of at most `length` characters; what is left out in the middle becomes an ellipsis."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    tail = length // 3
    return f"{line[: length - tail - 1].rstrip()}…{line[-tail:].lstrip()}"


def number(value: float | None, *, sign: bool = False) -> str:
    """Three decimals; "-" for None."""
    return "-" if value is None else format(value, "+.3f" if sign else ".3f")


def interval_text(interval: Interval | Sequence[float] | None, *, sign: bool = False) -> str:
    if interval is None:
        return "-"
    low, high = interval
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def estimate_text(estimate: Estimate | None, *, sign: bool = False) -> str:
    """ "0.812 [0.795, 0.829]"; without an interval the value alone; "-" for None."""
    if estimate is None:
        return "-"
    value = number(estimate.value, sign=sign)
    return value if estimate.interval is None else f"{value} {interval_text(estimate.interval, sign=sign)}"
