"""Single values of a row, checked; a wrong one raises RowError (missing_field) with the name of its field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aplot_lightning.data.comparisons.comparison import Conversation, Message, RowError

LARGEST = 1e30  # of a number: columns are float32, and differences of two shall be finite there


def messages_of(value: Any, name: str) -> Conversation:
    """A list of ``{"role", "content"}`` messages, their other fields left out."""
    if not isinstance(value, list | tuple):
        raise RowError("missing_field", f'"{name}" is neither text nor messages but {kind_of(value)}')
    return tuple(_message(message, f"{name}[{place}]") for place, message in enumerate(value))


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping) or "role" not in value or "content" not in value:
        raise RowError("missing_field", f'"{name}" is not a message with "role" and "content"')
    return {key: text_of(value[key], f"{name}.{key}") for key in ("role", "content")}


def text_of(value: Any, name: str) -> str:
    """A text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise RowError("missing_field", f'"{name}" is not text but {kind_of(value)}')
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair, which no tokenizer takes
        raise RowError("missing_field", f'"{name}" holds half a surrogate pair, which is no character') from error
    return value


def number_of(value: Any, name: str) -> float:
    """A finite number, at most `LARGEST` in size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("missing_field", f'"{name}" is not a number but {kind_of(value)}')
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError("missing_field", f'"{name}" is {number}, not a finite number')
    if abs(number) > LARGEST:
        raise RowError("missing_field", f'"{name}" is {number:g}, beyond {LARGEST:g}, the largest that is taken')
    return number


def kind_of(value: Any) -> str:
    """What a value is, for messages: ``int``, ``list``, ``null`` ..."""
    return "null" if value is None else type(value).__name__
