"""The pages of reports: Jinja2 templates in templates/, one for each kind of page."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aplot_lightning.evaluation.report.tables import Table, duration, escape, interval_text, number, quantity

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """The page of templates/TEMPLATE.md.jinja, with one blank line between its blocks and one line break at its end.

    Values are plain text: a template escapes them by the filter `md`, and `table` escapes what is text in a table.
    """
    page = _environment().get_template(f"{template}.md.jinja").render(values)
    return re.sub(r"\n{3,}", "\n\n", page).strip("\n") + "\n"


def markdown_table(table: Table) -> str:
    """A single table as Markdown, without a line break at its end."""
    macros: Any = _environment().get_template("macros.md.jinja").module
    return str(macros.table(table)).strip("\n")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates"), encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "md": lambda value: escape(str(value)),
        "number": number,
        "interval": interval_text,
        "quantity": quantity,
        "duration": duration,
        "shell": shlex.quote,
    }
    return environment
