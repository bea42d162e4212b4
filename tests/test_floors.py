# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports go downward only, from floor to floor of the house that DESIGN.md draws.

What a module imports under ``if TYPE_CHECKING`` or inside a function counts as well: it's something that a reader has to
know, whenever it's resolved.  So modules of one floor may name each other in annotations, and nobody may name what stands
above: hw knows no address spaces, mm knows no KVM.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import gmemu

SOURCE = Path(gmemu.__file__).parent

FLOORS = (
    ("uapi",),
    ("rangemap", "invariants", "profiles", "rules"),
    ("sync",),
    ("hw",),
    ("mm",),
    ("kvm",),
    ("syscalls",),
    ("accounting", "check", "api"),
    ("faults", "vmm"),
    ("launch", "explore", "exec", "conformance", "scenarios", "cluster"),
    ("report",),
    ("cli", "pytest_plugin", "__main__", "__init__"),
)
"""From the bottom up.  Rooms of one floor may import each other; the last is the package itself, which names what it has."""

LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}


class Import(NamedTuple):
    """One import of one of our own modules."""

    path: Path
    line: int
    target: str
    """the room that is imported from"""
    typing_only: bool


def room_of(path: Path) -> str:
    """The package or module directly under gmemu that the file belongs to."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def guarded(tree: ast.Module) -> set[int]:
    """The lines under ``if TYPE_CHECKING``."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {line for block in blocks for node in block.body for line in range(node.lineno, (node.end_lineno or 0) + 1)}


def absolute(path: Path, node: ast.ImportFrom) -> list[str]:
    """The module that a ``from ... import`` names, as parts below gmemu; empty if it isn't ours."""
    module = (node.module or "").split(".") if node.module else []
    if not node.level:
        return module[1:] if module[:1] == ["gmemu"] else []
    package = list(path.relative_to(SOURCE).parts[:-1])
    return [*package[: len(package) - node.level + 1], *module]


def imports(path: Path) -> Iterator[Import]:
    """Everything of ours that the file imports, wherever it does."""
    tree = ast.parse(path.read_text(), str(path))
    typing_only = guarded(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parts = absolute(path, node)
            ours = node.level or (node.module or "").split(".")[0] == "gmemu"
            rooms = {parts[0]} if parts else {alias.name for alias in node.names} if ours else set()
        elif isinstance(node, ast.Import):
            rooms = {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gmemu.")}
        else:
            continue
        for room in sorted(rooms & set(LEVEL)):
            yield Import(path, node.lineno, room, node.lineno in typing_only)


ALL = [found for path in sorted(SOURCE.rglob("*.py")) for found in imports(path)]


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(path) for path in SOURCE.rglob("*.py")}
    assert rooms <= set(LEVEL), "give it a floor in FLOORS, and say so in DESIGN.md"


@pytest.mark.parametrize("room", [room for floor in FLOORS for room in floor])
def test_nothing_imports_what_stands_above_it(room: str) -> None:
    above = [i for i in ALL if room_of(i.path) == room and LEVEL[i.target] > LEVEL[room]]
    assert [f"{i.path.relative_to(SOURCE)}:{i.line} imports {i.target}" for i in above] == []


def test_kernel_code_never_asks_which_runtime_it_is_in() -> None:
    """Below the door only the interface is known; a host makes the direct one if it's given none."""
    concrete = {"direct", "explored"}
    found = []
    for floor in ("hw", "mm", "kvm"):
        for path in sorted((SOURCE / floor).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                module = isinstance(node, ast.ImportFrom) and concrete & set((node.module or "").split("."))
                name = isinstance(node, ast.Name) and node.id in ("DirectRuntime", "ExploredRuntime")
                if module or name:
                    found.append(str(path.relative_to(SOURCE)))
    assert set(found) <= {"kvm/host.py"}


def test_importing_the_package_imports_nothing_else() -> None:
    """gmemu's names are loaded when they are first used."""
    at_once = [i for i in ALL if i.path == SOURCE / "__init__.py" and not i.typing_only]
    assert at_once == []
