"""Tables, and how numbers, durations and text of unknown origin are written in reports."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aplot_lightning.evaluation.statistics import Interval

# an underscore inside a word is not markup, and names of sets stay searchable
_MARKDOWN = re.compile(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))")


@dataclass(frozen=True)
class Table:
    """Header and rows as text, for a terminal and for the templates' macro `table`.

    Attributes:
        header: plain text.
        rows: as many cells each as the header.
        left: the first `left` columns are text: aligned to the left, and escaped in Markdown. The others are figures.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def text(self) -> str:
        """The table for a terminal."""
        return text_table(self.header, self.rows)


class Estimated(Protocol):
    """A value with an interval, which is None if it is unknown."""

    @property
    def value(self) -> float: ...
    @property
    def interval(self) -> Interval | None: ...


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns with a rule under the header: the first column to the left, the others to the right."""
    widths = [max(map(_width, column)) for column in zip(header, *rows, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([_aligned(header, widths), rule, *(_aligned(row, widths) for row in rows)])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padding = [" " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
    first, *others = zip(cells, padding, strict=True)
    return "  ".join(["".join(first), *(space + cell for cell, space in others)]).rstrip()


def _width(text: str) -> int:
    """Columns of a terminal that the text takes: East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def escape(text: str) -> str:
    """The text on one line of Markdown, without effect as markup, as HTML or as the end of a table's cell."""
    line = one_line("".join(character if character.isprintable() else " " for character in text))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", line)


def one_line(text: object) -> str:
    """The text with every run of white space as a single space."""
    return " ".join(str(text).split())


def shorten(text: str, length: int = 200) -> str:
    """The text on one line of at most `length` characters, with an ellipsis for what is cut from the middle."""
    line = one_line(text)
    if len(line) <= length:
        return line
    tail = length // 3
    return f"{line[: length - tail - 1].rstrip()}…{line[-tail:].lstrip()}"


def number(value: float | None, *, sign: bool = False) -> str:
    """Three decimals; "-" for None."""
    return "-" if value is None else format(value, "+.3f" if sign else ".3f")


def interval_text(interval: Interval | Sequence[float] | None, *, sign: bool = False) -> str:
    """ "[0.795, 0.829]"; "-" for None."""
    if interval is None:
        return "-"
    low, high = interval
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def estimate_text(estimate: Estimated | None, *, sign: bool = False) -> str:
    """ "0.812 [0.795, 0.829]"; without an interval the value alone; "-" for None."""
    if estimate is None:
        return "-"
    value = number(estimate.value, sign=sign)
    return value if estimate.interval is None else f"{value} {interval_text(estimate.interval, sign=sign)}"


def p_text(p_value: float | None) -> str:
    """Three decimals, or "<0.001"; "-" for None."""
    return "<0.001" if p_value is not None and p_value < 0.001 else number(p_value)


def p_equals(p_value: float | None) -> str:
    """ "p = 0.012", "p < 0.001" or "no p-value"."""
    if p_value is None:
        return "no p-value"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def quantity(value: float | None) -> str:
    """A number of any size: "9,568", "12.5"; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def count(number_of: int, one: str, several: str | None = None) -> str:
    """ "1 seed", "2 seeds"; `several` for a plural that is not formed by an s."""
    return f"{number_of} {one if number_of == 1 else several or one + 's'}"


def duration(seconds: float | None) -> str:
    """ "4.2 s", "3 min 5 s", "2 h 10 min"; "-" for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
