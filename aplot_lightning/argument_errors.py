"""Messages of jsonargparse, shortened to one line that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from inspect import signature

# lines of jsonargparse that only introduce a complaint or repeat one
NOISE = re.compile(
    r"Parser key |Does not validate|Problem with given class_path|Subtypes: |Errors:$|Given value|Expected a path but|"
    r"Subclass types expect|a class path \(str\)|a dict with|Expected a <class 'NoneType'>|"
    r"Expected a <class '\w+'>\. Got value: Namespace"
)
CLASS = re.compile(r"Problem with given class_path '(.+)':")
UNKNOWN = re.compile(r"unrecognized arguments|does not accept option|Option .* is not accepted$")
CLASS_PATH_HINT = "give a class path such as aplot_lightning.objectives.Objective"
NO_CLASS = re.compile(r"Expected a dot import path|module .* has no attribute|No module named")


def one_line(message: str) -> str:
    """An error message of jsonargparse on one line: the key, the innermost complaint, and the accepted values.

    For a nested class, jsonargparse prints a tree with the complaints of every member of every union. Only the deepest
    level is kept.
    """
    text = re.sub(r'(Parser key "[^"]+":) *(?=\S)', r"\1\n  ", message)
    lines = [(len(line) - len(line.lstrip(" -")), line.strip(" -")) for line in text.splitlines() if line.strip(" -")]
    telling = [index for index, (_, line) in enumerate(lines) if not NOISE.match(line)]
    deepest = max((lines[index][0] for index in telling), default=0)
    indices = [index for index in telling if lines[index][0] == deepest]
    if not indices or deepest == 0:
        return _plain(" ".join(line for _, line in lines))
    above = _above(lines, indices[0])
    keys = [line.split('"')[1] for line in above if line.startswith("Parser key")]
    complaints = dict.fromkeys(lines[index][1] for index in indices)
    special = [complaint for complaint in complaints if not complaint.startswith("Expected ")]
    shown = " or ".join(special or complaints).replace(" or Expected ", " or ")
    given = next((line for _, line in lines[indices[-1] :] if line.startswith("Given value: ")), "").partition(": ")[2]
    if given and not re.match(r"NestedArg|Namespace|[{\[]", given) and given not in re.split(r"[\s'\"]+", shown):
        shown += f". Got value: {given}"
    classes = [found[1] for found in map(CLASS.match, above) if found]
    return f"{'.'.join(keys)}: {_plain(shown, classes[-1:])}" if keys else _plain(shown, classes[-1:])


def _above(lines: Sequence[tuple[int, str]], index: int) -> list[str]:
    """The ancestors of a line in the tree, from the root down."""
    depth, above = lines[index][0], []
    for indent, line in reversed(lines[:index]):
        if indent < depth:
            depth = indent
            above.append(line)
    return above[::-1]


def _plain(complaint: str, classes: Sequence[str] = ()) -> str:
    """A complaint with plain names of types, and with the accepted names if it does not list them."""
    complaint = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", complaint)
    complaint = re.sub(r"a typing\.Literal\[([^]]*)\]", r"one of \1", complaint)
    if NO_CLASS.search(complaint):
        return f"{complaint}; {CLASS_PATH_HINT}"
    if not UNKNOWN.search(complaint):
        return complaint
    for path in classes:
        module, _, name = path.rpartition(".")
        return f"{complaint} by {name}, only {', '.join(signature(getattr(import_module(module), name)).parameters)}"
    return f"{complaint}; see --help"
