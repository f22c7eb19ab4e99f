"""Who may import whom (CONTRIBUTING.md): read from the code, so that a wrong import fails here and not in a review."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aplot_lightning"
HEAVY = ["torch", "lightning", "transformers", "matplotlib"]
# the storage of studies is below training, whose runs report to it
GROUND = {
    "tuning.storage",
    "tuning.locks",
    "errors",
    "exit_codes",
    "argument_errors",
    "files",
    "types",
    "transport",
    "evaluation.similarity",
    "evaluation.statistics",
}
# a room, and what of ours it may import beside itself
FLOORS = {
    "errors": set(),
    "exit_codes": set(),
    "argument_errors": set(),
    "files": set(),
    "tuning.locks": {"errors"},
    "tuning.storage": {"errors", "tuning.locks"},
    "types": set(),
    "transport": {"errors"},
    "evaluation.similarity": set(),
    "evaluation.statistics": set(),
    "data": GROUND,
    "objectives": {"types", "transport", "errors"},
    "evaluation": GROUND,
    "model": {"types", "errors", "data"},
    "inference": {*GROUND, "data", "evaluation", "model"},
    "training": {*GROUND, "data", "objectives", "evaluation", "model", "cli", "commands"},
    "tuning": {*GROUND, "data", "evaluation", "model", "objectives", "training", "cli"},
    "commands": {*GROUND, "data", "objectives", "evaluation", "model", "training", "tuning", "inference", "cli"},
}


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in the file, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name.removeprefix("aplot_lightning.") for name in found if name.startswith("aplot_lightning.")}


def room_of(module: str) -> str:
    return module if module in FLOORS else module.split(".")[0]


FILES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in FLOORS]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_floor_allows(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    room = room_of(module)
    wrong = {name for name in imports(path) if room_of(name) not in FLOORS[room] | {room}}
    assert not wrong, f"{room} may not import {sorted(wrong)}"


def test_the_pure_rooms_never_import_lightning() -> None:
    for room in ("transport.py", "types.py", "objectives", "model", "evaluation"):
        paths = [PACKAGE / room] if room.endswith(".py") else list((PACKAGE / room).rglob("*.py"))
        for path in paths:
            assert "import lightning" not in path.read_text(encoding="utf-8"), path
            assert "from lightning" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("module", ["aplot_lightning", "aplot_lightning.cli", "aplot_lightning.commands.report"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
