# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/must-run.md: every line leads to something that is there and that runs."""

from __future__ import annotations

import ast
import re

import pytest

from gmemu.explore.variants import VARIANTS
from gmemu.scenarios import CATALOGUE

from .blocks import ROOT

TEXT = (ROOT / "docs/must-run.md").read_text()
TABLE = re.findall(r"^\| (?!what must)([^|]+?) \| (.+?) \|$", TEXT, re.M)
_REFERENCE = re.compile(r"(scenario|variant|test) `([^`]+)`|\]\((disputes/[^)]+)\)")


def test_every_discussion_is_there() -> None:
    assert re.findall(r"^## ([A-Z])\.", TEXT, re.M) == list("ABCDE")
    assert len(TABLE) == 40 + 41


def test_every_bug_is_there() -> None:
    assert re.findall(r"\bS\d\d\b", TEXT) == [f"S{n:02}" for n in (*range(1, 15), *range(16, 43), 15)]


@pytest.mark.parametrize(("what", "where"), TABLE, ids=[what for what, _ in TABLE])
def test_a_line_leads_to_what_runs(what: str, where: str) -> None:
    found = list(_REFERENCE.finditer(where))
    assert found, f"{what} is nowhere"
    for reference in found:
        kind, name, page = reference.groups()
        if page:
            assert (ROOT / "docs" / page).is_file()
        elif kind == "scenario":
            assert name in CATALOGUE
        elif kind == "variant":
            assert name in VARIANTS
            assert any(name in variants for scenario in CATALOGUE.values() for variants in scenario.stated())
        else:
            assert _has_tests(name)


def _has_tests(name: str) -> bool:
    """Whether a test file, or the one test that is named, exists."""
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    return function in tests if function else bool(tests)
