"""The layers that a backbone is a stack of."""

from __future__ import annotations

from typing import Any

from torch import nn


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a Transformers model is a stack of, in order.

    They are the members of its lists whose classes the architecture itself says must not be split
    (`_no_split_modules`); where it names none, of the list that holds most parameters. Empty where there is no list.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    lists: list[Any] = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    found = [block for stack in lists for block in stack if type(block).__name__ in names]
    if found or not lists:
        return found
    return list(max(lists, key=_size))


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
