"""What a suite's public raw rows look like, and how they become rows of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aplot_lightning.data.comparisons import RowError

Raw = Mapping[str, Any]
Ours = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How a suite's files are read.

    Attributes:
        name: of the suite, as `evaluate --suite` takes it.
        title: as the suite calls itself.
        fields: what tells its rows from other suites' rows, for messages.
        fits: whether a row is one of its raw rows.
        read: such a row as ours, given the names of the folders and the file that it lies in; None where the suite
            leaves the row out (a tie between the people who judged). Raises RowError where the row is malformed.
        pairs: whether rows in our own pair layout are read too; else rows of many ``responses`` with ``scores``.
        subsets: the names of its parts; () where any is taken.
        files: a pattern of the names of its files in a clone of its repository; where a folder has any of them, the
            others in it are passed over.
        hub: (configuration, split, part) of its data set on the hub that a name without a split stands for; the part
            is what `read` gets as the file's name.
    """

    name: str
    title: str
    fields: tuple[str, ...]
    fits: Callable[[Raw], bool]
    read: Callable[[Raw, Sequence[str]], Ours | None]
    pairs: bool = True
    subsets: tuple[str, ...] = ()
    files: str = ""
    hub: tuple[tuple[str | None, str, str], ...] = field(default=((None, "train", ""),))

    def subset(self, name: str) -> str | None:
        """The part that a name means: itself or, behind the suite's own folders, its end. None for no part of it."""
        return next((part for part in self.subsets if name == part or name.endswith(f"/{part}")), None)

    def own_row(self, row: Raw) -> Ours | None:
        """A row in our own layout, its subset checked; None where it is none. Raises RowError for another suite's."""
        given = {name for name, value in row.items() if value is not None}
        if not ({"chosen", "rejected"} <= given if self.pairs else "responses" in given):
            return None
        if self.pairs and (row["chosen"] and is_texts(row["chosen"])):  # several responses: another suite's raw row
            return None
        subset = row.get("subset")
        if self.subsets and subset not in (None, "") and self.subset(str(subset)) is None:
            raise RowError("missing_field", f"the subset {str(subset)[:50]!r} is no part of {self.title}")
        return dict(row)


def text(row: Raw, name: str) -> str:
    """A field that is text. Raises RowError where it is none."""
    value = row.get(name)
    if not isinstance(value, str):
        raise RowError("missing_field", f'"{name}" is {"not there" if value is None else "no text"}')
    return value


def texts(row: Raw, name: str) -> list[str]:
    """A field that is a list of texts, at least one. Raises RowError where it is none."""
    value = row.get(name)
    if not is_texts(value) or not value:
        raise RowError("missing_field", f'"{name}" is {"not there" if value is None else "no list of texts"}')
    return list(value)


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def user(content: str) -> list[dict[str, str]]:
    """A prompt of one user message: text that looks like a transcript stays text."""
    return [{"role": "user", "content": content}]


def labels(row: Raw, subset: str) -> Ours:
    """The id, where the row has one, and its subset."""
    return {"subset": subset, **({"id": str(row["id"])} if row.get("id") is not None else {})}


def best_first(row: Raw, prompt: str, chosen: Sequence[str], rejected: Sequence[str], subset: str) -> Ours:
    """A row of many responses, the right ones first, each right one better than each wrong one."""
    scores = [1.0] * len(chosen) + [0.0] * len(rejected)
    return {"prompt": user(prompt), "responses": [*chosen, *rejected], "scores": scores, **labels(row, subset)}
